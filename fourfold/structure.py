"""What a model file must be before anything loads it. Needs onnx alone."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fourfold.errors import first_line
from fourfold.onnx_file import BATCH, INPUT, OPSET, OUTPUT

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


@dataclass(frozen=True)
class Form:
    """What a file promises: (batch, features) of a dtype in, (batch, targets) of the same dtype out.

    Attributes:
        dtype: "float32" or "float64".
    """

    features: int
    targets: int
    dtype: str


class Refused(Exception):
    """The file is not what it promises; says in one sentence what it is, whatever names the file has."""

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in sentence))


def read_model(content: bytes, form: Form) -> ModelProto:
    """Parse a file's bytes, and hold it to its form without running any of it.

    One symbolic batch and fixed widths; the opset that the export asks for; standard operators, none of them
    random or for training only; every weight inside. No data outside of the file is opened, wherever it points.

    Raises:
        Refused: with what was found and what was promised.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises its own, and onnx others
        raise Refused(f"the file cannot be read as ONNX: {first_line(error)}") from error
    if not model.graph.node:
        raise Refused("the file cannot be read as ONNX: it holds no operator")
    try:
        _check_data_inside(model)
        _check_operators(model)
        _check_values("input", model.graph.input, INPUT, form.features, form.dtype)
        _check_values("output", model.graph.output, OUTPUT, form.targets, form.dtype)
    except (TypeError, UnicodeError) as error:  # protobuf gives a text that is no UTF-8 as bytes
        raise Refused(f"the file cannot be read as ONNX: {first_line(error)}") from error
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and what the C++ below them raises
        raise Refused(f"the file is no valid ONNX: {first_line(error)}") from error
    return model


def form_of(content: bytes) -> Form:
    """The form that a file of unknown origin claims to have, by the columns that it names.

    Raises:
        Refused: the file cannot be read, or names no columns.
    """
    try:
        model = onnx.load_model_from_string(content)
        about = {entry.key: entry.value for entry in model.metadata_props}
        kind = model.graph.input[0].type.tensor_type.elem_type
    except Exception as error:  # protobuf raises its own, and onnx others
        raise Refused(f"the file cannot be read as ONNX: {first_line(error)}") from error
    try:
        widths = [len(json.loads(about[key])) for key in ("features", "targets")]
    except (KeyError, ValueError, TypeError, RecursionError) as error:  # the last of brackets in brackets
        raise Refused("the file does not say which columns it takes; it was not made by fourfold") from error
    return Form(widths[0], widths[1], _DTYPES.get(kind, f"type {kind}"))


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if _holds_graph(attribute) else ():
                yield from graphs(inner)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every operator, those of inner graphs included."""
    return (node for graph in graphs(model.graph) for node in graph.node)


def constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor that stands in the file: initializers by name, those in nodes by the name of their output."""
    for graph in graphs(model.graph):
        for initializer in graph.initializer:
            yield initializer.name, initializer
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    if tensor.ByteSize():
                        yield node.output[0] if node.output else node.op_type, tensor


def widened(model: ModelProto) -> ModelProto:
    """The same steps with the same numbers in float64, wherever a float32 file computes in float32."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for graph in graphs(wide.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for tensor in graph.initializer:
            _widen(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    if tensor.ByteSize():
                        _widen(tensor)
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
                if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                    numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                    attribute.CopyFrom(helper.make_attribute("value", _doubles(numbers)))
    return wide


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        name = tensor.name
        tensor.CopyFrom(_doubles(numpy_helper.to_array(tensor)))
        tensor.name = name


def _doubles(values: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float64))


def _holds_graph(attribute: AttributeProto) -> bool:
    return attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _check_data_inside(model: ModelProto) -> None:
    for name, tensor in constants(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "nowhere")
            raise Refused(f"the file keeps {name} outside, in {where!r}; every weight must be inside")
    for graph in graphs(model.graph):
        if graph.sparse_initializer or any(map(_sparse, graph.node)):
            raise Refused("the file holds a sparse tensor, which no network here has")


def _sparse(node: NodeProto) -> bool:
    return any(a.HasField("sparse_tensor") or a.sparse_tensors for a in node.attribute)


def _check_operators(model: ModelProto) -> None:
    imported = [f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import]
    if imported != [f"ai.onnx {OPSET}"]:
        found = ", ".join(imported) or "none"
        raise Refused(f"the file's opset is {found}; ai.onnx {OPSET} was asked for")
    if model.functions or model.training_info:
        raise Refused("the file holds functions or a training part of its own; only standard operators are allowed")
    for node in nodes(model):
        if node.domain not in ("", "ai.onnx"):
            raise Refused(f"operator {node.op_type} is of the domain {node.domain}; only ai.onnx is allowed")
        if node.op_type in RANDOM:
            raise Refused(f"operator {node.op_type} is random; a prediction must be the same each time")
        if _trains(node):
            raise Refused(f"operator {node.op_type} is in training mode")


def _trains(node: NodeProto) -> bool:
    if node.op_type == "Dropout":  # its third input decides, and may be computed
        return len(node.input) > 2 and bool(node.input[2])
    return any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)


def _check_values(kind: str, values: Iterable[ValueInfoProto], name: str, width: int, dtype: str) -> None:
    expected = f"{name} {dtype}({BATCH}, {width})"
    found = ", ".join(map(_spell, values)) or "none"
    if found != expected:
        raise Refused(f"the file's {kind} is {found}; {expected} was promised")


def _spell(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    names = {number: known.lower() for known, number in TensorProto.DataType.items()} | _DTYPES
    dtype = names.get(tensor.elem_type, f"type {tensor.elem_type}")
    sizes = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return f"{value.name} {dtype}({', '.join(sizes)})"
