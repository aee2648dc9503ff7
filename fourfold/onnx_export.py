"""From a torch network to one ONNX file that says what it is."""

import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from fourfold.errors import ExportError
from fourfold.onnx_file import BATCH, INPUT, OPSET, OUTPUT, ExportedModel
from fourfold.structure import graphs


def detached(network: nn.Module) -> nn.Module:
    """Give a copy in evaluation mode on the CPU, whose gradients nobody waits for.

    Raises:
        ExportError: the network cannot be copied.
    """
    try:
        return copy.deepcopy(network).cpu().eval().requires_grad_(False)
    except Exception as error:  # a user's network may hold anything
        raise ExportError(f"the network cannot be copied: {_first_sentence(error)}") from error


def export(network: nn.Module, x: Tensor, path: Path, metadata: Mapping[str, str]) -> ExportedModel:
    """Write a network, in evaluation mode, as one file with a dynamic batch.

    The network itself is left as it was. The exporter's optimizer stays off: it folds weights into others, and
    what is no longer there as it was trained cannot be compared (onnxruntime does the same where it loads the file).
    What the exporter notes about the machine that it ran on (source paths, stack traces) is taken out: the same
    weights and metadata give the same bytes anywhere.

    Args:
        network: (rows, features) to (rows, targets).
        x: at least two rows of the right width and dtype, to trace with.
        path: of the new file.
        metadata: what the file says of itself; onnxruntime gives it back as `custom_metadata_map`.

    Raises:
        ExportError: with the exporter's first sentence.
    """
    copied = detached(network)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                copied,
                (x[:2].cpu(),),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=({0: BATCH},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the network raises
        raise ExportError(f"the network cannot be exported: {_first_sentence(error)}") from error
    assert program is not None, "torch.onnx.export gives a program where dynamo is on"
    model = program.model_proto
    _forget_machine(model)
    onnx.helper.set_model_props(model, dict(metadata))
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    return ExportedModel(path, hashlib.sha256(content).hexdigest())


def _forget_machine(model: onnx.ModelProto) -> None:
    for graph in graphs(model.graph):
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del part.metadata_props[:]
            part.doc_string = ""


def _first_sentence(error: BaseException) -> str:
    """The reason at the bottom of a chain of wrapped errors, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what the exporter says of torchvision and of its own deprecations: nobody here can mend it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
