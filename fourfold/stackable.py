"""Whether trainings can be stacked: found by trying, for any network and any optimizer."""

import copy
import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from fourfold.errors import first_line
from fourfold.fitting import evaluate_loss
from fourfold.losses import LOSSES
from fourfold.optimizers import OptimizerConfig
from fourfold.population import Problem, Stack, flat_parameters, trained_parameters

# A network whose forward is random shows it in so many passes, but for one in 3 ** 15 where it chooses among three.
PASSES_TO_SHOW_RANDOMNESS = 16
# How far the numbers of a stacked pass may be from those of one network, relative to the largest: batched products
# round otherwise, 8e-6 was seen.
ROUNDING = 1e-4
# Steps of the optimizer's probe, and numbers in it: more than a kernel's vectors hold, so that their tails are tried.
_PROBE_STEPS, _PROBE_NUMBERS, _PROBE_ROWS = 4, 70, 3


def why_not_stacked(problem: Problem, optimizer: OptimizerConfig) -> str:
    """Say why trainings cannot be stacked; empty where they can.

    Found by trying, not from a list: the gradients of a stack against those of each network, and a few steps of the
    stacked optimizer, which must be the bits of separate ones.
    """
    return _network_fault(problem) or _optimizer_fault(problem, optimizer)


@lru_cache(maxsize=1)  # asked once for each optimizer
def _network_fault(problem: Problem) -> str:
    networks = [copy.deepcopy(start.network).train() for start in problem.starts]
    constants = [_constants(network) for network in networks]
    if not all(_alike(constants[0], others) for others in constants):
        return "its networks differ in more than what is trained"
    x, y = problem.x[:_PROBE_ROWS], problem.y[:_PROBE_ROWS]
    states = torch.get_rng_state(), random.getstate()
    try:
        losses, gradients = zip(*(_pass(network, x, y, problem.loss) for network in networks), strict=True)
        if any(gradient is None for gradient in gradients[0]):
            return "its loss does not depend on all that is trained"
        alone = torch.stack([torch.cat([gradient.reshape(-1) for gradient in each]) for each in gradients])
        for _ in range(PASSES_TO_SHOW_RANDOMNESS - 1):
            loss, again = _pass(networks[0], x, y, problem.loss)
            if not (torch.equal(loss, losses[0]) and _alike(again, gradients[0])):
                return "the network is random in training"
        if not _alike(_constants(networks[0]), constants[0]):
            return "the network changes itself in training"
        stack = Stack(problem)
        stack.template.train()
        parameters = stack.first.clone().requires_grad_()
        # In mini-batches each seed has rows of its own.
        rows = (x, y) if problem.batches == 1 else tuple(part.repeat(len(networks), 1, 1) for part in (x, y))
        (together,) = torch.autograd.grad(stack.losses(parameters, *rows).sum(), parameters)
        judged = stack.evaluate(stack.first, x, y)
        judged_alone = [evaluate_loss(network, x, y, problem.loss, problem.batch_size) for network in networks]
    except Exception as error:  # of a user's network, or of what vmap cannot do
        return f"the network cannot be stacked: {first_line(error)}"
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    pairs = ((together, alone), (judged, torch.tensor(judged_alone, dtype=torch.float64)))
    if not all(torch.allclose(a, b, rtol=0, atol=ROUNDING * float(b.abs().max())) for a, b in pairs):
        return "stacked, the network computes something else"
    return ""


def _optimizer_fault(problem: Problem, optimizer: OptimizerConfig) -> str:
    """Step a stack and separate networks by the same made-up gradients; they must stay the same bits."""
    if optimizer.lr_for:
        return "some parameters have a learning rate of their own"
    if optimizer.options.get("fused"):  # by one unit in the last place, too seldom to be sure to find it
        return "a fused step rounds a vector's numbers otherwise than single ones"
    generator = torch.Generator().manual_seed(0)
    network = problem.starts[0].network
    members = max(2, -(-_PROBE_NUMBERS // max(1, len(flat_parameters(network)))))
    networks = [copy.deepcopy(network) for _ in range(members)]
    try:
        separate = [optimizer.build(network) for network in networks]
        storage = torch.stack([flat_parameters(network) for network in networks])
        together = optimizer.over([{"params": [storage], "lr": optimizer.lr}])
        for _ in range(_PROBE_STEPS):
            gradient = torch.randn(storage.shape, generator=generator, dtype=storage.dtype)
            storage.grad = gradient.clone()
            together.step(lambda: 1.0)
            for network, one, row in zip(networks, separate, gradient, strict=True):
                trained = trained_parameters(network)
                for parameter, piece in zip(trained, row.split([p.numel() for p in trained]), strict=True):
                    parameter.grad = piece.view(parameter.shape).clone()
                one.step(lambda: 1.0)
    except Exception as error:  # torch's optimizers may raise anything
        return f"{optimizer.name} cannot be stacked: {first_line(error)}"
    same = torch.equal(storage, torch.stack([flat_parameters(network) for network in networks]))
    return "" if same else f"{optimizer.name} looks at more than one number at a time"


def _pass(network: nn.Module, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, and the gradient of each trained parameter, None where it is not used."""
    value = LOSSES[loss](network(x), y)
    return value.detach(), torch.autograd.grad(value, trained_parameters(network), allow_unused=True)


def _constants(network: nn.Module) -> list[Tensor]:
    fixed = [parameter.detach().clone() for parameter in network.parameters() if not parameter.requires_grad]
    return fixed + [buffer.detach().clone() for buffer in network.buffers()]


def _alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are the same bits in the same types."""
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
