"""The gate: a model file passes only if onnxruntime predicts from its bytes what the torch network predicts."""

import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.onnx_export import detached
from fourfold.onnx_file import ExportedModel
from fourfold.parity import MOST_REFERENCE_ROWS, Expectation, ParityReport, failed, prove
from fourfold.probes import MOST_ROWS, probes, sample
from fourfold.rounding import evaluate_exactly
from fourfold.structure import Refused, read_model
from fourfold.weights import check_weights, tensors

REPEATS, REPEATED_ROWS = 16, 64
# A file is its weights and some kilobytes about them.
MOST_BYTES_BESIDE_WEIGHTS = 4 * 2**20
# Where no bound is known: so many times what torch's own evaluation in the dtype deviates from a more exact one, and
# so many epsilons at the scale of the outputs, for what sums of a few hundred terms differ by in another order.
DEVIATIONS, EPSILONS = 8, 32


def find_randomness(network: nn.Module, x: Tensor) -> str:
    """Say where a network, in evaluation mode, predicts otherwise when it is asked again; empty where it does not.

    The network, and the generators of torch, numpy and random, are left as they were.
    """
    copied, rows = detached(network), sample(x.cpu(), REPEATED_ROWS)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first = copied(rows.clone())  # a network may change the rows it is given
            for _ in range(REPEATS - 1):
                again = copied(rows.clone())
                same = (again == first) | (again.isnan() & first.isnan())
                if not same.all():
                    row, column = (~same).nonzero()[0].tolist()
                    return (
                        f"the network is random in evaluation mode: for the same row it predicts "
                        f"{first[row, column]:.9g}, and when asked again {again[row, column]:.9g}"
                    )
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return ""


def expect(network: nn.Module, rows: Mapping[str, Tensor]) -> list[Expectation]:
    """What torch predicts for the rows at hand and for those that are made from them, with what may be allowed.

    Args:
        network: left as it was.
        rows: named (rows, features) tensors; "training rows" is one of them, the first, and not empty.
    """
    copied = detached(network)
    wide = deepcopy(copied).double()
    at_hand = sum(len(given) > 0 for given in rows.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of operations on few rows: threads that wait for each other take longer
    try:
        with torch.no_grad():
            usual = _largest(copied(sample(next(iter(rows.values())).cpu(), MOST_ROWS).clone()).double())
        return [
            _expectation(copied, wide, usual, name, x, number < at_hand)
            for number, (name, x) in enumerate(probes(copied, rows))
        ]
    finally:
        torch.set_num_threads(threads)


def verify(network: nn.Module, exported: ExportedModel, expectations: list[Expectation]) -> ParityReport:
    """Judge a file: what it is, which weights it holds, and what it predicts; the first fault ends it.

    Args:
        network: the original, not the exporter's program; left as it was.
        exported: read again from disk.
        expectations: of this network.
    """
    copied = detached(network)
    weights = sum(values.nbytes for _, values in tensors(copied))
    try:
        size = exported.path.stat().st_size
        if size > 2 * weights + MOST_BYTES_BESIDE_WEIGHTS:
            return failed(f"the file has {size} bytes, for weights of {weights}")
        content = exported.path.read_bytes()
    except OSError as error:
        return failed(f"the file cannot be read: {error.strerror or error}")
    first = expectations[0]
    try:
        model = read_model(content, first.form)
        accounts = check_weights(model, copied, torch.from_numpy(first.x[:REPEATED_ROWS].copy()))
    except Refused as refusal:
        return failed(str(refusal), content)
    report = prove(content, model, expectations)
    if report.passed and report.sha256 != exported.sha256:
        report = replace(report, verdict="failed", reason="the file's bytes are others than were exported")
    return replace(report, weights=accounts)


def _expectation(
    network: nn.Module, wide: nn.Module, usual: Tensor, name: str, x: Tensor, at_hand: bool
) -> Expectation:
    with torch.no_grad():
        predicted = network(x.clone())  # a network may change the rows it is given
    undecided = torch.zeros(len(x), dtype=torch.bool)
    try:
        exact = evaluate_exactly(wide, x)
        truth, bound, undecided, basis = exact.value, exact.bound, exact.undecided, exact.basis
        if truth.shape != predicted.shape or truth.dtype != torch.float64:
            raise TypeError("the network does not stay in float64")
    except Exception:  # a user's network may know its own dtype only
        truth, bound, basis = predicted.double(), None, "epsilons of the outputs: the network does not run in float64"
    # Where torch overflows on its way to a number that is within reach, another order of its steps may not.
    within_reach = truth.abs() < torch.finfo(x.dtype).max
    undecided |= (x.isfinite().all(dim=1, keepdim=True) & within_reach & ~predicted.isfinite()).any(dim=1)
    if bound is None or bound.isnan().any():
        fallback = _from_deviation(network, usual, x, predicted, truth).expand_as(truth)
        bound = fallback if bound is None else torch.where(bound.isnan(), fallback, bound)
    in_float64 = _in_float64(wide, name, x[:MOST_REFERENCE_ROWS])
    return _expected(
        name, x, predicted, truth, bound, undecided, basis=basis, at_hand=at_hand, in_float64=in_float64
    )  # fmt: skip


def _expected(
    name: str, x: Tensor, predicted: Tensor, truth: Tensor, allowed: Tensor, undecided: Tensor, **about: Any
) -> Expectation:
    return Expectation(
        name, x.numpy(), predicted.numpy(), truth.numpy(), allowed.numpy(), undecided.numpy(), **about
    )  # fmt: skip


def _in_float64(wide: nn.Module, name: str, x: Tensor) -> Expectation | None:
    """What a float32 network's steps give in float64; None where that, or how far it may be off, is not known."""
    if x.dtype is not torch.float32:
        return None
    try:
        exact = evaluate_exactly(wide, x.double(), numbers=x.dtype)
    except Exception:  # a user's network may know its own dtype only
        return None
    if exact.bound is None or exact.bound.isnan().any() or exact.value.dtype != torch.float64:
        return None
    return _expected(name, x.double(), exact.value, exact.value, exact.bound, exact.undecided, basis=exact.basis)


def _largest(values: Tensor) -> Tensor:
    """The largest finite magnitude of each column, (1, columns)."""
    return torch.where(values.isfinite(), values.abs(), 0).amax(dim=0, keepdim=True)


def _from_deviation(network: nn.Module, usual: Tensor, x: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """What is allowed where no bound is known, (1, targets): from what float32 deviates, scaled to the dtype.

    Where a set's outputs are all near zero, their terms are not: the scale is at least that of the training rows.
    """
    epsilon = torch.finfo(predicted.dtype).eps
    less_exact, factor = predicted.double(), 1.0
    if predicted.dtype is torch.float64:  # the truth is no better than the prediction, so a worse one has to tell
        factor = epsilon / torch.finfo(torch.float32).eps
        try:
            with torch.no_grad():
                less_exact = deepcopy(network).float()(x.float()).double()
        except Exception:  # a user's network may know its own dtype only
            factor = 0.0
    scale = torch.maximum(_largest(truth), usual)
    finite = less_exact.isfinite() & truth.isfinite()
    deviation = torch.where(finite, (less_exact - truth).abs(), 0).amax(dim=0, keepdim=True)
    return DEVIATIONS * factor * deviation + EPSILONS * epsilon * scale
