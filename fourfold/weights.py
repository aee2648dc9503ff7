"""Which tensor of a model file is which tensor of the network, bit for bit."""

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from fourfold.errors import first_line
from fourfold.structure import Refused, constants, graphs, nodes


def check_weights(model: ModelProto, network: nn.Module, x: Tensor) -> dict[str, str]:
    """Hold every tensor of a file against the network's, and every tensor of the network against the file's.

    A number that the network's code writes (the 2 in `2 * x`) is no weight: single values in Constant nodes are left
    to the comparison of predictions.

    Args:
        network: in evaluation mode, on the CPU.
        x: (rows, features) to see which tensors the network does not use at all.

    Returns:
        What became of each tensor of the network: "as it is", "transposed", or "not used in evaluation".

    Raises:
        Refused: a tensor is in one of the two and not in the other, or is read by no operator of the file.
    """
    owned = dict(tensors(network))
    keys = {name: (_key(values), _key(values.T)) for name, values in owned.items()}
    of_the_network = {key for both in keys.values() for key in both}
    stored = [(name, values.shape, _key(values)) for name, values in _stored(model)]
    in_the_file = {key for _, _, key in stored}
    foreign = [
        f"{name} {shape}, which {_reader(model, name)} reads"
        for name, shape, key in stored
        if key not in of_the_network
    ]
    accounts: dict[str, str] = {}
    missing: list[str] = []
    for name, (key, transposed) in keys.items():
        if key in in_the_file:
            accounts[name] = "as it is"
        elif transposed in in_the_file:
            accounts[name] = "transposed"
        elif _is_unused(network, name, x):
            accounts[name] = "not used in evaluation"
        else:
            missing.append(name)
    if missing:
        folded = f"; it seems to be folded into {foreign[0]}" if foreign else ""
        owner = type(network.get_submodule(missing[0].rpartition(".")[0])).__name__
        raise Refused(
            f"the file does not hold {missing[0]} {owned[missing[0]].shape} of the {owner} as torch has it{folded}"
        )
    if foreign:
        raise Refused(
            f"the file holds {foreign[0]}, and the network has no such tensor; a constant of yours must be a buffer"
        )
    idle = sorted(name for name, _, _ in stored if not _is_read(model, name))
    if idle:
        raise Refused(f"the file holds {idle[0]}, which no operator reads")
    return accounts


def tensors(network: nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters, buffers (also those that are not saved), and tensors that are mere attributes."""
    yield from ((name, value.detach().numpy()) for name, value in network.named_parameters(remove_duplicate=False))
    yield from ((name, value.numpy()) for name, value in network.named_buffers(remove_duplicate=False))
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".removeprefix("."), value.detach().numpy()


def _stored(model: ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in the file that could be a weight: initializers, and more than one number in a node."""
    initializers = {tensor.name for graph in graphs(model.graph) for tensor in graph.initializer}
    for name, tensor in constants(model):
        try:
            values = numpy_helper.to_array(tensor)
        except Exception as error:  # numpy's, for bytes that do not fill the shape
            raise Refused(f"the file's tensor {name} cannot be read: {first_line(error)}") from error
        if name in initializers or (values.size > 1 and values.dtype.kind == "f"):
            yield name, values
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.FLOATS:
                yield node.output[0], np.array(attribute.floats, dtype=np.float32)


def _key(values: np.ndarray) -> tuple[object, ...]:
    return values.shape, values.dtype.str, np.ascontiguousarray(values).tobytes()


def _reader(model: ModelProto, name: str) -> str:
    return next((node.op_type for node in nodes(model) if name in node.input), "no operator")


def _is_read(model: ModelProto, name: str) -> bool:
    outputs = {value.name for graph in graphs(model.graph) for value in graph.output}
    return name in outputs or any(name in (*node.input, *node.output) for node in nodes(model))


def _is_unused(network: nn.Module, name: str, x: Tensor) -> bool:
    """Whether a prediction stays the same, bit for bit, when the tensor is another one."""
    owner, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(owner), attribute)
    before = tensor.detach().clone()
    with torch.no_grad():
        expected = network(x.clone())
        try:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1 - before.flatten()[0].item())
            return torch.equal(network(x.clone()), expected)
        except Exception:  # a network that cannot run without it uses it
            return False
        finally:
            tensor.copy_(before)
