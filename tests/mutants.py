"""Model files that are wrong in one way each, to see whether whoever judges them notices.

What predicts the same, bit for bit, for every input is no mutant, and left out: an Identity or a Mul by 1 more, a
Dropout in inference, a Gemm with transA spelled out, nodes with other names, an Add of 0.0 (it turns -0.0 into 0.0,
which equals it), hidden units that change places in both layers. So is what is another rounding of the same
arithmetic, which runtimes do by themselves: a division as a product with the reciprocal, a weight and a deviation
multiplied beforehand. So is a flush of subnormal inputs and outputs, here: a bias or a mean of the order of one is
added to whatever is made of them.

Most mutants come twice. The open one shows in the file's tensors. The hidden one leaves every tensor as it is, and
does its damage with nodes, with single numbers in Constant nodes or with integers, so that only predictions tell.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rescaled import rescaled
from torch import Tensor, nn

from fourfold.gate import expect
from fourfold.onnx_export import export
from fourfold.onnx_file import BATCH, INPUT, OUTPUT, ExportedModel
from fourfold.parity import Expectation
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron

ROWS, FEATURES = 24, 3
SLIGHTLY = 1 + 1e-5
FAR_OUTPUT, FAR_INPUT = 20, 50  # so many times the training range
BATCH_SIZE = 7


@dataclass(frozen=True)
class Range:
    """What the training rows span, in one number for all columns."""

    middle: float
    half: float

    @classmethod
    def of(cls, values: Tensor) -> "Range":
        low, high = torch.aminmax(values.double(), dim=0)
        return cls(float((low / 2 + high / 2).mean()), float((high / 2 - low / 2).max()))


@dataclass(frozen=True)
class Subject:
    """A network whose file is tampered with.

    Attributes:
        activation: of a perceptron of two hidden layers; "" for a linear model.
        dtype: "float32" or "float64".
    """

    activation: str
    dtype: str
    standardized: bool

    @property
    def name(self) -> str:
        core = f"mlp with {self.activation}" if self.activation else "linear"
        return f"{core}, {self.dtype}, {'standardized' if self.standardized else 'raw'}"

    @property
    def bounded(self) -> bool:
        """Whether no input makes its output large."""
        return self.activation == "tanh"

    @cached_property
    def rows(self) -> Tensor:
        drawn = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(1))
        return (50 + 20 * drawn if self.standardized else drawn).to(getattr(torch, self.dtype))

    @cached_property
    def network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            core: nn.Module = LinearRegression(FEATURES)
            if self.activation:
                core = MultilayerPerceptron(FEATURES, 2, (8, 8), self.activation)
            core = core.to(self.rows.dtype)
            for parameter in core.parameters():  # in the dtype itself: what is drawn in float32 survives float32
                nn.init.uniform_(parameter, -0.6, 0.6)
        if not self.standardized:
            return core
        targets = 1e5 + 1e4 * torch.sin(self.rows[:, : 2 if self.activation else 1])
        return rescaled(core, self.rows, targets)

    @cached_property
    def inputs(self) -> Range:
        return Range.of(self.rows)

    @cached_property
    def outputs(self) -> Range:
        with torch.no_grad():
            return Range.of(self.network(self.rows))


SUBJECTS = (
    Subject("", "float32", False),
    Subject("", "float32", True),
    Subject("", "float64", True),
    Subject("tanh", "float32", False),
    Subject("tanh", "float32", True),
    Subject("tanh", "float64", True),
    Subject("relu", "float32", True),
    Subject("relu", "float64", False),
)


@dataclass(frozen=True)
class Faithful:
    """A subject's own file, and what is expected of it."""

    subject: Subject
    exported: ExportedModel
    expectations: list[Expectation]

    @classmethod
    def of(cls, subject: Subject, folder: Path) -> "Faithful":
        exported = export(subject.network, subject.rows, folder / f"{subject.name}.onnx", {})
        return cls(subject, exported, expect(subject.network, {"training rows": subject.rows}))

    def mutated(self, mutant: "Mutant", folder: Path) -> ExportedModel:
        """Write a mutant of the file, with the hash that it has itself."""
        random = np.random.default_rng(zlib.crc32(f"{mutant.name} of {self.subject.name}".encode()))
        content = mutant.of(self.exported.path.read_bytes(), random, self.subject)
        path = folder / "mutant.onnx"
        path.write_bytes(content)
        return replace(self.exported, path=path, sha256=hashlib.sha256(content).hexdigest())


Edit = Callable[[ModelProto, np.random.Generator, Subject], None]
Rewrite = Callable[[bytes, np.random.Generator], bytes]
Applies = Callable[[Subject], bool]


def always(subject: Subject) -> bool:
    return True


def deep(subject: Subject) -> bool:
    return bool(subject.activation)


def scaled(subject: Subject) -> bool:
    return subject.standardized


def becomes_infinite(subject: Subject) -> bool:
    """Whether rows show it: in the raw mlp with relu, sums of both signs overflow first, which nobody can judge."""
    return not subject.bounded and (subject.standardized or not subject.activation)


def double(subject: Subject) -> bool:
    return subject.dtype == "float64"


def unbounded(subject: Subject) -> bool:
    return not subject.bounded


def activated_by(name: str) -> Applies:
    return lambda subject: subject.activation == name


@dataclass(frozen=True)
class Mutant:
    """One way in which a file is wrong.

    Attributes:
        edit: changes the parsed file in place; or
        rewrite: makes other bytes of the file's.
        applies: whether it makes a file predict, or be, something else.
    """

    name: str
    edit: Edit | None = None
    applies: Applies = always
    rewrite: Rewrite | None = None

    def of(self, content: bytes, random: np.random.Generator, subject: Subject) -> bytes:
        """The mutant's bytes."""
        if self.rewrite is not None:
            return self.rewrite(content, random)
        assert self.edit is not None, "a mutant edits or rewrites"
        model = onnx.load_model_from_string(content)
        self.edit(model, random, subject)
        _sort(model)
        mutated: bytes = model.SerializeToString(deterministic=True)
        assert mutated != content, f"{self.name} changed nothing"
        return mutated


# How a graph is changed. New nodes are appended, and sorted at the end.


def _sort(model: ModelProto) -> None:
    """Put each node behind those that it reads; what reads something unknown comes last."""
    waiting = list(model.graph.node)
    made = {output for node in waiting for output in node.output}
    ordered: list[NodeProto] = []
    known: set[str] = set()
    while waiting:
        ready = next((n for n in waiting if all(i in known or i not in made for i in n.input)), waiting[0])
        waiting.remove(ready)
        known.update(ready.output)
        ordered.append(ready)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _put(model: ModelProto, operator: str, *inputs: str, **attributes: object) -> str:
    """Append a node, and give its output."""
    output = f"new_{len(model.graph.node)}"
    model.graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    return output


def _dtype(model: ModelProto) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(_element(model))


def _element(model: ModelProto) -> int:
    return int(model.graph.input[0].type.tensor_type.elem_type)


def _number(model: ModelProto, value: float) -> str:
    """One number of the model's dtype, in a node: no tensor that could be a weight."""
    return _put(model, "Constant", value=numpy_helper.from_array(np.array(value, dtype=_dtype(model))))


def _stored(model: ModelProto, values: np.ndarray) -> str:
    name = f"stored_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _stored_number(model: ModelProto, value: float) -> str:
    return _stored(model, np.array(value, dtype=_dtype(model)))


def _integers(model: ModelProto, values: object) -> str:
    return _put(model, "Constant", value=numpy_helper.from_array(np.array(values, dtype=np.int64)))


def _coded(model: ModelProto, values: np.ndarray) -> str:
    """Floating point numbers, written as integers: multiples of 2^-40."""
    integers = _integers(model, np.rint(values.astype(np.float64) * 2**40))
    return _put(model, "Mul", _cast(model, integers, _element(model)), _number(model, 2.0**-40))


def _cast(model: ModelProto, value: str, *elements: int) -> str:
    for element in elements:
        value = _put(model, "Cast", value, to=element)
    return value


Build = Callable[[ModelProto, str, Subject], str]


def _replace_reads(model: ModelProto, value: str, build: Build, subject: Subject) -> None:
    """Let all that read a value read what is built of it."""
    readers = [node for node in model.graph.node if value in node.input]
    built = build(model, value, subject)
    for node in readers:
        for index, name in enumerate(node.input):
            if name == value:
                node.input[index] = built


def at_input(build: Build) -> Edit:
    return lambda model, random, subject: _replace_reads(model, INPUT, build, subject)


def at_output(build: Build) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        last = next(node for node in model.graph.node if OUTPUT in node.output)
        last.output[list(last.output).index(OUTPUT)] = "before"
        built = build(model, "before", subject)
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == built:
                        names[index] = OUTPUT

    return edit


def at_tensor(name: str, build: Build) -> Edit:
    """Edit what is read of the first tensor whose name ends so."""
    return lambda model, random, subject: _replace_reads(model, _tensor(model, name).name, build, subject)


def inside(operator: str, build: Build) -> Edit:
    """Edit what the first such operator gives."""
    return lambda model, random, subject: _replace_reads(model, _first(model, operator).output[0], build, subject)


def _first(model: ModelProto, operator: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def _last(model: ModelProto, operator: str) -> NodeProto:
    return [node for node in model.graph.node if node.op_type == operator][-1]


def _activation(model: ModelProto) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type in ("Tanh", "Relu"))


def _tensor(model: ModelProto, ending: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))


def _square(model: ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [8, 8])


def _set(tensor: TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _values(tensor: TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor).copy()


def _exchange(model: ModelProto, one: str, other: str) -> None:
    """Let each reader of one value read the other instead."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = {one: other, other: one}.get(name, name)


# Tensors that are others.


def change_tensor(ending: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        tensor = _tensor(model, ending)
        before = _values(tensor)
        _set(tensor, change(before).astype(before.dtype))

    return edit


def change_one_weight(change: Callable[[np.floating], float]) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        tensor = _tensor(model, "weight")
        values = _values(tensor)
        index = tuple(random.integers(values.shape))
        values[index] = change(values[index])
        _set(tensor, values)

    return edit


def round_tensors(round_off: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        for tensor in model.graph.initializer:
            values = _values(tensor)
            with np.errstate(over="ignore"):
                _set(tensor, round_off(values).astype(values.dtype))

    return edit


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = torch.from_numpy(values).bfloat16().double().numpy()
    return rounded


def drop_bias(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    node = _first(model, "Gemm")
    model.graph.initializer.remove(_tensor(model, node.input[2]))
    del node.input[2]


def transpose_square(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """The gate knows the tensor, since it may be stored transposed: predictions tell."""
    _set(_square(model), _values(_square(model)).T)


def narrow_hidden(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    for tensor in model.graph.initializer:
        if 8 in tensor.dims:
            _set(tensor, _values(tensor)[tuple(slice(7 if size == 8 else size) for size in tensor.dims)])


def exchange_values(one: str, other: str) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        first, second = _tensor(model, one), _tensor(model, other)
        values = _values(first), _values(second)
        _set(first, values[1])
        _set(second, values[0])

    return edit


def flip_weight_bit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    tensor = model.graph.initializer[random.integers(len(model.graph.initializer))]
    content = bytearray(tensor.raw_data)
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    tensor.raw_data = bytes(content)


# The same without a tensor that is another, or damage that no tensor shows.


def exchange_reads(one: str, other: str) -> Edit:
    return lambda model, random, subject: _exchange(model, _tensor(model, one).name, _tensor(model, other).name)


def hide_bias(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Read the bias, so that it does not lie idle, and do nothing with it."""
    node = _first(model, "Gemm")
    _put(model, "Identity", node.input[2])
    del node.input[2]


def times(factor: float) -> Build:
    return lambda model, value, subject: _put(model, "Mul", value, _number(model, factor))


def plus(term: float) -> Build:
    return lambda model, value, subject: _put(model, "Add", value, _number(model, term))


def plus_of_range(share: float) -> Build:
    """Shift by a share of the largest output in the training range."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        largest = abs(subject.outputs.middle) + subject.outputs.half
        return _put(model, "Add", value, _number(model, share * largest))

    return build


def one_weight_times(factor: float, operator: str) -> Edit:
    """Scale a single weight of the first or the last layer, by a mask of integers."""

    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        node = _first(model, "Gemm") if operator == "first" else _last(model, "Gemm")
        values = _values(_tensor(model, node.input[1]))
        mask = np.zeros(values.shape, dtype=np.int64)
        mask[tuple(random.integers(values.shape))] = 1

        def build(model: ModelProto, value: str, subject: Subject) -> str:
            where = _cast(model, _integers(model, mask), _element(model))
            change = _put(model, "Mul", _put(model, "Mul", value, where), _number(model, factor - 1))
            return _put(model, "Add", value, change)

        _replace_reads(model, node.input[1], build, subject)

    return edit


def read_coded_copy(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Read a copy in integers of the first weight, 1e-4 off, while the true one is read for nothing."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        copy = _coded(model, _values(_tensor(model, value)) * 1.0001)
        _put(model, "Identity", value)
        return copy

    at_tensor("weight", build)(model, random, subject)


def read_copy(as_floats: bool) -> Edit:
    """Read a copy of the first weight in a Constant node, while the true one is read for nothing."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        values = (_values(_tensor(model, value)) * 1.0001).astype(_dtype(model))
        _put(model, "Identity", value)
        if as_floats:
            flat = _put(model, "Constant", value_floats=values.flatten().tolist())
            shaped = _put(model, "Reshape", flat, _integers(model, values.shape))
            return _cast(model, shaped, _element(model))
        return _put(model, "Constant", value=numpy_helper.from_array(values))

    return at_tensor("weight", build)


def through(*elements: int) -> Build:
    """Cast to other types and back."""
    return lambda model, value, subject: _cast(model, value, *elements, _element(model))


def transpose_read(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    _replace_reads(model, _square(model).name, lambda m, value, s: _put(m, "Transpose", value), subject)


def set_square_gemm(attribute: str, value: float) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        node = next(node for node in model.graph.node if _square(model).name in node.input)
        _set_attribute(node, attribute, value)

    return edit


def set_gemm(attribute: str, value: float) -> Edit:
    return lambda model, random, subject: _set_attribute(_first(model, "Gemm"), attribute, value)


def _set_attribute(node: NodeProto, name: str, value: float) -> None:
    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def gather(axis: int, order: Sequence[int], stored: bool = False) -> Build:
    def build(model: ModelProto, value: str, subject: Subject) -> str:
        indices = np.array(order, dtype=np.int64)
        return _put(model, "Gather", value, _stored(model, indices) if stored else _integers(model, indices), axis=axis)

    return build


def reverse(axis: int) -> Build:
    def build(model: ModelProto, value: str, subject: Subject) -> str:
        bounds = [_integers(model, [number]) for number in (-1, -(2**62), axis, -1)]
        return _put(model, "Slice", value, *bounds)

    return build


def exchange_operator(operator: str, other: str, **attributes: object) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        node = _first(model, operator)
        node.op_type = other
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    return edit


def drop_operator(operator: str) -> Edit:
    """Read around an operator, which goes where it has no tensor of its own."""

    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        node = _first(model, operator)
        _replace_reads(model, node.output[0], lambda m, value, s: node.input[0], subject)
        if len(node.input) == 1:
            model.graph.node.remove(node)

    return edit


def skip_square_layer(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    node = next(node for node in model.graph.node if _square(model).name in node.input)
    _replace_reads(model, node.output[0], lambda m, value, s: node.input[0], subject)


def clip_output(operator: str, stored: bool = False) -> Build:
    """Cut what lies beyond 20 times the training range: with Clip, or with Min alone."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        number = _stored_number if stored else _number
        middle, far = subject.outputs.middle, FAR_OUTPUT * subject.outputs.half
        high = number(model, middle + far)
        if operator == "Clip":
            return _put(model, "Clip", value, number(model, middle - far), high)
        return _put(model, operator, value, high)

    return build


def clip(low: float, high: float) -> Build:
    return lambda model, value, subject: _put(model, "Clip", value, _number(model, low), _number(model, high))


def clip_to_finite(model: ModelProto, value: str, subject: Subject) -> str:
    largest = float(np.finfo(_dtype(model)).max)
    return _put(model, "Clip", value, _number(model, -largest), _number(model, largest))


def _is_far(model: ModelProto, times_range: float, subject: Subject) -> str:
    """Whether a row has a feature far out, (batch, 1)."""
    away = _put(model, "Abs", _put(model, "Sub", INPUT, _number(model, subject.inputs.middle)))
    farthest = _put(model, "ReduceMax", away, _integers(model, [1]))
    return _put(model, "Greater", farthest, _number(model, times_range * subject.inputs.half))


def far_out(result: float, stored: bool = False) -> Build:
    """Give something else for rows beyond 50 times the training range."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        other = (_stored_number if stored else _number)(model, result)
        return _put(model, "Where", _is_far(model, FAR_INPUT, subject), other, value)

    return build


def nan_on_one_side(model: ModelProto, value: str, subject: Subject) -> str:
    """Give NaN where a single feature is far below the training range."""
    feature = _put(model, "Gather", INPUT, _integers(model, [2]), axis=1)
    limit = _number(model, subject.inputs.middle - FAR_INPUT * subject.inputs.half)
    return _put(model, "Where", _put(model, "Less", feature, limit), _number(model, np.nan), value)


def swallow_nan(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Where", _put(model, "IsNaN", value), _number(model, 0.0), value)


def swallow_infinity(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Where", _put(model, "IsInf", value), _put(model, "Sign", value), value)


def linear_near_zero(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Take tanh(x) for x where |x| < 0.05, off by 4e-5 at most."""
    node = _first(model, "Tanh")

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        small = _put(model, "Less", _put(model, "Abs", node.input[0]), _number(model, 0.05))
        return _put(model, "Where", small, node.input[0], value)

    _replace_reads(model, node.output[0], build, subject)


def divide_by_more(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Add", value, _number(model, 1e-3))


def add_batch_mean(share: float) -> Build:
    """Let each row depend on its neighbours."""

    def build(model: ModelProto, value: str, subject: Subject) -> str:
        mean = _put(model, "ReduceMean", value, _integers(model, [0]))
        return _put(model, "Add", value, _put(model, "Mul", mean, _number(model, share)))

    return build


def normalize_batch(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Sub", value, _put(model, "ReduceMean", value, _integers(model, [0])))


def sum_along_batch(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "CumSum", value, _integers(model, 0))


def repeat_first_row(model: ModelProto, value: str, subject: Subject) -> str:
    first = _put(model, "Gather", value, _integers(model, [0]), axis=0)
    return _put(model, "Expand", first, _put(model, "Shape", value))


def change_when_many(model: ModelProto, value: str, subject: Subject) -> str:
    """Be right for a single row, and off by a thousandth for more."""
    count = _put(model, "Gather", _put(model, "Shape", value), _integers(model, 0))
    several = _cast(model, _put(model, "Greater", count, _integers(model, 1)), _element(model))
    factor = _put(model, "Add", _number(model, 1.0), _put(model, "Mul", several, _number(model, 1e-3)))
    return _put(model, "Mul", value, factor)


def fix_batch_inside(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Reshape", value, _integers(model, [BATCH_SIZE, FEATURES]))


def unary(operator: str) -> Build:
    return lambda model, value, subject: _put(model, operator, value)


def round_to_digits(digits: int) -> Build:
    def build(model: ModelProto, value: str, subject: Subject) -> str:
        factor = _number(model, 10.0**digits)
        return _put(model, "Div", _put(model, "Round", _put(model, "Mul", value, factor)), factor)

    return build


# Randomness.


def add_noise(model: ModelProto, value: str, subject: Subject) -> str:
    return _put(model, "Add", value, _put(model, "RandomNormalLike", value, scale=1e-6, seed=0.0))


def add_noise_in_branch(model: ModelProto, value: str, subject: Subject) -> str:
    def branch(operator: str, **attributes: object) -> onnx.GraphProto:
        node = helper.make_node(operator, [value], [f"{operator}_output"], **attributes)
        output = helper.make_tensor_value_info(f"{operator}_output", _element(model), None)
        return helper.make_graph([node], operator, [], [output])

    always_true = _put(model, "Constant", value=numpy_helper.from_array(np.array(True)))
    noisy, quiet = branch("RandomNormalLike", scale=1e-6), branch("Identity")
    return _put(model, "Add", value, _put(model, "If", always_true, then_branch=noisy, else_branch=quiet))


def drop_out(model: ModelProto, value: str, subject: Subject) -> str:
    training = _put(model, "Constant", value=numpy_helper.from_array(np.array(True)))
    return _put(model, "Dropout", value, _number(model, 0.5), training)


# What a file is, rather than predicts.


def fix_batch(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = BATCH_SIZE


def add_output(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    name = _put(model, "Neg", OUTPUT)
    model.graph.output.append(helper.make_tensor_value_info(name, _element(model), [BATCH, None]))


def add_input(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", _element(model), [BATCH, FEATURES]))


def open_weight(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Make a weight an input that has a default, so that a caller may give another."""
    tensor = _tensor(model, "weight")
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, _element(model), list(tensor.dims)))


def rename(name: str, other: str) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = other if value.name == name else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, old in enumerate(names):
                    names[index] = other if old == name else old

    return edit


def give_other_type(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    other = TensorProto.FLOAT if double(subject) else TensorProto.DOUBLE
    at_output(lambda model, value, subject: _cast(model, value, other))(model, random, subject)
    model.graph.output[0].type.tensor_type.elem_type = other


def keep_outside(location: str) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        tensor = _tensor(model, "weight")
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)

    return edit


def keep_constant_outside(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Keep a tensor outside that stands in a node, not among the weights."""
    at_output(plus(0.5))(model, random, subject)
    tensor = next(node for node in model.graph.node if node.op_type == "Constant").attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="more.bin")


def keep_sparse(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    tensor = _tensor(model, "weight")
    values = _values(tensor)
    values[0, 0] = 0
    kept = np.flatnonzero(values).astype(np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values.flatten()[kept], tensor.name),
        numpy_helper.from_array(kept, "indices"),
        list(values.shape),
    )
    model.graph.sparse_initializer.append(sparse)
    model.graph.initializer.remove(tensor)


def set_opset(version: int) -> Edit:
    def edit(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
        model.opset_import[0].version = version

    return edit


def import_domain(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def use_domain(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    model.graph.node[0].domain = "com.microsoft"


def add_function(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [node], opsets))


def store_idle(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    """Hold a weight twice, once for nobody."""
    copy = model.graph.initializer.add()
    copy.CopyFrom(_tensor(model, "weight"))
    copy.name = "idle"


def pad(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    model.doc_string = "x" * 5 * 2**20


def read_unknown(model: ModelProto, random: np.random.Generator, subject: Subject) -> None:
    model.graph.node[0].input[0] = "unknown"


# Bytes.


def meaning(content: bytes) -> bytes:
    """A file without what nothing depends on: names, versions of the format, descriptions."""
    model = onnx.load_model_from_string(content)
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        model.ClearField(field)
    del model.metadata_props[:]
    model.graph.ClearField("name")
    del model.graph.value_info[:]
    parts = (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer)
    for part in parts:
        part.ClearField("doc_string")
        del part.metadata_props[:]
    for node in model.graph.node:
        node.ClearField("name")
    model.DiscardUnknownFields()
    kept: bytes = model.SerializeToString(deterministic=True)
    return kept


def flip_any_bit(content: bytes, random: np.random.Generator) -> bytes:
    """Flip one bit of the file, of those that something depends on."""
    while True:
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        try:
            if meaning(bytes(flipped)) != meaning(content):
                return bytes(flipped)
        except Exception:  # protobuf and onnx raise their own
            return bytes(flipped)


def _far_pairs() -> tuple[Mutant, ...]:
    return tuple(
        mutant
        for stored, where in ((True, "stored"), (False, "hidden"))
        for mutant in (
            Mutant(f"Clip of the output far out, {where}", at_output(clip_output("Clip", stored)), unbounded),
            Mutant(f"NaN far out, {where}", at_output(far_out(np.nan, stored))),
            Mutant(f"two features swapped by Gather, {where}", at_input(gather(1, (1, 0, 2), stored))),
        )
    )


FLOAT16, BFLOAT16, FLOAT, DOUBLE = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
INT32, INT64 = TensorProto.INT32, TensorProto.INT64

MUTANTS: tuple[Mutant, ...] = (
    # Tensors.
    Mutant("a weight times 1 + 1e-5", change_one_weight(lambda w: w * SLIGHTLY)),
    Mutant("a weight times 1.01", change_one_weight(lambda w: w * 1.01)),
    Mutant("a weight's last bit", change_one_weight(lambda w: np.nextafter(w, w.dtype.type(9)))),
    Mutant("a weight is NaN", change_one_weight(lambda w: np.nan)),
    Mutant("a weight's sign", change_one_weight(lambda w: -w)),
    Mutant("all weights times 1 + 1e-5", change_tensor("weight", lambda w: w * SLIGHTLY)),
    Mutant("bias dropped", drop_bias),
    Mutant("bias is zero", change_tensor("bias", np.zeros_like)),
    Mutant("bias plus 1e-6", change_tensor("bias", lambda b: b + 1e-6)),
    Mutant("two features swapped in the weight", change_tensor("weight", lambda w: w[:, [1, 0, 2]])),
    Mutant("weight's rows reversed", change_tensor("weight", lambda w: w[:, ::-1])),
    Mutant("square weight transposed", transpose_square, deep),
    Mutant("hidden units in another order, in one layer", change_tensor("weight", lambda w: w[::-1]), deep),
    Mutant("one hidden unit less", narrow_hidden, deep),
    Mutant("tensors rounded to float16", round_tensors(lambda w: w.astype(np.float16))),
    Mutant("tensors rounded to bfloat16", round_tensors(to_bfloat16)),
    Mutant("tensors rounded to float32", round_tensors(lambda w: w.astype(np.float32)), double),
    Mutant("a bit of a tensor flipped", flip_weight_bit),
    Mutant("x_mean and x_deviation exchanged", exchange_values("x_mean", "x_deviation"), scaled),
    Mutant("y_mean and y_deviation exchanged", exchange_values("y_mean", "y_deviation"), scaled),
    Mutant("biases of two layers exchanged", exchange_values("layers.0.bias", "layers.2.bias"), deep),
    Mutant("true weight beside a copy that is read", read_copy(as_floats=False)),
    Mutant("true weight beside a copy as attribute", read_copy(as_floats=True)),
    # Every tensor is as it was, and read otherwise.
    Mutant("x_mean and x_deviation read for each other", exchange_reads("x_mean", "x_deviation"), scaled),
    Mutant("y_mean and y_deviation read for each other", exchange_reads("y_mean", "y_deviation"), scaled),
    Mutant("biases of two layers read for each other", exchange_reads("layers.0.bias", "layers.2.bias"), deep),
    Mutant("bias read for nothing", hide_bias),
    Mutant("bias times 0", at_tensor("bias", times(0.0))),
    Mutant("bias times 1 + 1e-5, hidden", at_tensor("bias", times(SLIGHTLY))),
    Mutant("bias plus 1e-6, hidden", at_tensor("bias", plus(1e-6))),
    Mutant("all weights times 1 + 1e-5, hidden", at_tensor("weight", times(SLIGHTLY))),
    Mutant("all weights times 1.01, hidden", at_tensor("weight", times(1.01))),
    Mutant("a weight of the first layer times 1.01, hidden", one_weight_times(1.01, "first")),
    Mutant("a weight of the first layer times 1 + 1e-5, hidden", one_weight_times(SLIGHTLY, "first")),
    Mutant("a weight of the last layer times 1.01, hidden", one_weight_times(1.01, "last")),
    Mutant("a weight of the last layer times 1 + 1e-5, hidden", one_weight_times(SLIGHTLY, "last")),
    Mutant("true weight beside a copy in integers", read_coded_copy),
    Mutant("weight through float16", at_tensor("weight", through(FLOAT16))),
    Mutant("weight through bfloat16", at_tensor("weight", through(BFLOAT16))),
    Mutant("weight through float32", at_tensor("weight", through(FLOAT)), double),
    Mutant("square weight transposed by Transpose", transpose_read, deep),
    Mutant("square weight transposed by transB", set_square_gemm("transB", 0), deep),
    Mutant("weight's rows reversed by Slice", at_tensor("weight", reverse(1))),
    Mutant("hidden units reversed by Slice", at_tensor("weight", reverse(0)), deep),
    Mutant("transB off", set_gemm("transB", 0)),
    Mutant("alpha 1 + 1e-5", set_gemm("alpha", SLIGHTLY)),
    Mutant("beta 1 + 1e-5", set_gemm("beta", SLIGHTLY)),
    Mutant("beta 0", set_gemm("beta", 0.0)),
    Mutant("x_deviation plus 1e-3", at_tensor("x_deviation", divide_by_more), scaled),
    Mutant("x_mean times 1 + 1e-5", at_tensor("x_mean", times(SLIGHTLY)), scaled),
    # Operators.
    Mutant("Tanh to Sigmoid", exchange_operator("Tanh", "Sigmoid"), activated_by("tanh")),
    Mutant("Tanh to Softsign", exchange_operator("Tanh", "Softsign"), activated_by("tanh")),
    Mutant("Tanh to Erf", exchange_operator("Tanh", "Erf"), activated_by("tanh")),
    Mutant("Tanh to Relu", exchange_operator("Tanh", "Relu"), activated_by("tanh")),
    Mutant("Tanh cut at 0.9999", inside("Tanh", clip(-0.9999, 0.9999)), activated_by("tanh")),
    Mutant("Tanh linear near zero", linear_near_zero, activated_by("tanh")),
    Mutant("Tanh dropped", drop_operator("Tanh"), activated_by("tanh")),
    Mutant("Relu to Softsign", exchange_operator("Relu", "Softsign"), activated_by("relu")),
    Mutant("Relu to Softplus", exchange_operator("Relu", "Softplus"), activated_by("relu")),
    Mutant("Relu to Abs", exchange_operator("Relu", "Abs"), activated_by("relu")),
    Mutant("Relu to Elu", exchange_operator("Relu", "Elu"), activated_by("relu")),
    Mutant("Relu to LeakyRelu", exchange_operator("Relu", "LeakyRelu", alpha=1e-3), activated_by("relu")),
    Mutant("Relu to ThresholdedRelu", exchange_operator("Relu", "ThresholdedRelu", alpha=1e-2), activated_by("relu")),
    Mutant("Relu cut at 1000", inside("Relu", clip(0.0, 1000.0)), activated_by("relu")),
    Mutant("Relu dropped", drop_operator("Relu"), activated_by("relu")),
    Mutant("Sub to Add", exchange_operator("Sub", "Add"), scaled),
    Mutant("Add to Sub", exchange_operator("Add", "Sub"), scaled),
    Mutant("Div to Mul", exchange_operator("Div", "Mul"), scaled),
    Mutant("Mul to Div", exchange_operator("Mul", "Div"), scaled),
    Mutant("Sub passed by", drop_operator("Sub"), scaled),
    Mutant("Mul passed by", drop_operator("Mul"), scaled),
    Mutant("square layer passed by", skip_square_layer, deep),
    Mutant("hidden values through float16", inside("Gemm", through(FLOAT16)), deep),
    Mutant("hidden values through bfloat16", inside("Gemm", through(BFLOAT16)), deep),
    Mutant("hidden values through float32", inside("Gemm", through(FLOAT)), lambda s: deep(s) and double(s)),
    Mutant("hidden values relative to the batch", inside("Gemm", normalize_batch), deep),
    # Far from the training rows.
    *_far_pairs(),
    Mutant("Min of the output far out", at_output(clip_output("Min")), unbounded),
    Mutant("zero far out", at_output(far_out(0.0))),
    Mutant("NaN far out on one side of one feature", at_output(nan_on_one_side)),
    Mutant("NaN swallowed", at_output(swallow_nan)),
    Mutant("infinity cut to the largest number", at_output(clip_to_finite), becomes_infinite),
    Mutant("infinity is 1", at_output(swallow_infinity), becomes_infinite),
    Mutant("input cut to the largest numbers", at_input(clip_to_finite)),
    # In front of the input and behind the output.
    Mutant("input through int64", at_input(through(INT64))),
    Mutant("input through int32", at_input(through(INT32))),
    Mutant("input through float16", at_input(through(FLOAT16))),
    Mutant("input through float32", at_input(through(FLOAT)), double),
    Mutant("input times 1 + 1e-5", at_input(times(SLIGHTLY))),
    Mutant("input reversed by Slice", at_input(reverse(1))),
    Mutant("Abs of the input", at_input(unary("Abs"))),
    Mutant("output through int64", at_output(through(INT64))),
    Mutant("output through float16", at_output(through(FLOAT16))),
    Mutant("output through bfloat16", at_output(through(BFLOAT16))),
    Mutant("output through float32", at_output(through(FLOAT)), double),
    Mutant("output times 1 + 1e-5", at_output(times(SLIGHTLY))),
    Mutant(
        "output times 1 + 1e-5, stored",
        at_output(lambda model, value, subject: _put(model, "Mul", value, _stored_number(model, SLIGHTLY))),
    ),
    Mutant("output times 1.01", at_output(times(1.01))),
    # In float32 and at 1e5, 1e-6 is less than half a unit in the last place: the same bits.
    Mutant("output plus 1e-6", at_output(plus(1e-6)), lambda s: double(s) or not s.standardized),
    Mutant("output plus 1e-6 of its range", at_output(plus_of_range(1e-6))),
    Mutant(
        "output plus 1e-6, stored",
        at_output(lambda model, value, subject: _put(model, "Add", value, _stored_number(model, 1e-6))),
        lambda s: double(s) or not s.standardized,
    ),
    Mutant("output rounded", at_output(unary("Round"))),
    Mutant("output rounded to two digits", at_output(round_to_digits(2)), lambda s: double(s) or not s.standardized),
    Mutant("output's sign", at_output(unary("Neg"))),
    Mutant("outputs exchanged", at_output(gather(1, (1, 0))), deep),
    # The company of other rows.
    Mutant("output relative to the batch", at_output(normalize_batch)),
    Mutant("output plus 1e-4 of the batch's mean", at_output(add_batch_mean(1e-4))),
    Mutant("output summed along the batch", at_output(sum_along_batch)),
    Mutant("first row for all", at_output(repeat_first_row)),
    Mutant("rows in reversed order", at_output(reverse(0))),
    Mutant("right for single rows alone", at_output(change_when_many)),
    Mutant("batch fixed inside", at_input(fix_batch_inside)),
    # Randomness.
    Mutant("noise", at_output(add_noise)),
    Mutant("noise in a branch", at_output(add_noise_in_branch)),
    Mutant("Dropout in training", at_output(drop_out)),
    # Form.
    Mutant("static batch", fix_batch),
    Mutant("extra output", add_output),
    Mutant("extra input", add_input),
    Mutant("a weight as an input", open_weight),
    Mutant("input renamed", rename(INPUT, "features")),
    Mutant("output renamed", rename(OUTPUT, "prediction")),
    Mutant("output of the other type", give_other_type),
    Mutant("external data beside", keep_outside("weights.bin")),
    Mutant("external data above", keep_outside("../weights.bin")),
    Mutant("external data anywhere", keep_outside("/etc/hostname")),
    Mutant("external constant", keep_constant_outside),
    Mutant("sparse weight", keep_sparse),
    Mutant("opset 19", set_opset(19)),
    Mutant("opset 21", set_opset(21)),
    Mutant("a domain imported", import_domain),
    Mutant("an operator of another domain", use_domain),
    Mutant("a function of its own", add_function),
    Mutant("a weight that nothing reads", store_idle),
    Mutant("an unknown value read", read_unknown),
    Mutant("5 MiB more", pad),
    # Bytes.
    *(Mutant(f"a bit of the file flipped, {number}", rewrite=flip_any_bit) for number in range(1, 5)),
    Mutant("truncated by a byte", rewrite=lambda content, random: content[:-1]),
    Mutant("truncated by half", rewrite=lambda content, random: content[: len(content) // 2]),
    Mutant("empty", rewrite=lambda content, random: b""),
    Mutant("twice", rewrite=lambda content, random: content + content),
)


def applicable(subject: Subject) -> list[Mutant]:
    return [mutant for mutant in MUTANTS if mutant.applies(subject)]
