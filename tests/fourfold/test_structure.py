"""What a model file must be before anything loads it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fourfold.structure import Form, Refused, constants, nodes, read_model

FORM = Form(features=3, targets=1, dtype="float32")
Edit = Callable[[ModelProto], None]


def line(form: Form = FORM) -> ModelProto:
    """A plane, y = x w^T + b, as a file that was made without any exporter."""
    kind = TensorProto.FLOAT if form.dtype == "float32" else TensorProto.DOUBLE
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "line",
        [helper.make_tensor_value_info("x", kind, ["batch", form.features])],
        [helper.make_tensor_value_info("y", kind, ["batch", form.targets])],
        [
            numpy_helper.from_array(np.ones((form.targets, form.features), form.dtype), "w"),
            numpy_helper.from_array(np.ones(form.targets, form.dtype), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def put_behind(model: ModelProto, operator: str, *more_inputs: str, domain: str = "", **attributes: object) -> None:
    """Let one more node give y."""
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node(operator, ["before", *more_inputs], ["y"], domain=domain, **attributes))


def put_branch(model: ModelProto, *inside: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> None:
    """Let y be chosen between two inner graphs, one of which holds these nodes and gives the last one's output."""
    made = inside[-1].output[0] if inside else initializers[-1].name
    model.graph.node[-1].output[0] = "before"
    given = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
    other = helper.make_graph(
        [helper.make_node("Identity", ["before"], ["otherwise"])], "other", [],
        [helper.make_tensor_value_info("otherwise", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    model.graph.node.append(
        helper.make_node(
            "If", ["which"], ["y"], else_branch=other,
            then_branch=helper.make_graph(list(inside), "inner", [], [given], list(initializers)),
        )
    )  # fmt: skip


def refusal(content: bytes, form: Form = FORM) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(Refused) as refused:
        read_model(content, form)
    sentence = str(refused.value)
    assert sentence.isprintable(), "one line, whatever the file's names are"
    assert len(sentence.split()) > 4, "a sentence, not a word"
    return sentence


def refusal_of(edit: Edit) -> str:
    model = line()
    edit(model)
    return refusal(model.SerializeToString())


# What passes.


@pytest.mark.parametrize("form", [FORM, Form(1, 1, "float64"), Form(200, 5, "float32")], ids=str)
def test_a_file_of_the_promised_form_is_read(form: Form) -> None:
    model = line(form)
    assert read_model(model.SerializeToString(), form) == model


def test_the_standard_domain_may_be_spelled_out() -> None:
    model = line()
    model.opset_import[0].domain = "ai.onnx"
    assert read_model(model.SerializeToString(), FORM) == model


@pytest.mark.parametrize("inputs", [[], [""], ["", ""]], ids=["none", "one left out", "two left out"])
def test_a_dropout_that_never_trains_passes(inputs: list[str]) -> None:
    model = line()
    put_behind(model, "Dropout", *inputs)
    assert read_model(model.SerializeToString(), FORM) == model


def test_batch_normalisation_by_stored_moments_passes() -> None:
    model = line()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    put_behind(model, "BatchNormalization", "one", "one", "one", "one", training_mode=0)
    assert read_model(model.SerializeToString(), FORM) == model


def test_branches_pass_and_their_operators_and_tensors_are_seen() -> None:
    model = line()
    inner = numpy_helper.from_array(np.ones((1, 1), np.float32), "inner_weight")
    put_branch(model, helper.make_node("Add", ["before", "inner_weight"], ["sum"]), initializers=(inner,))
    read = read_model(model.SerializeToString(), FORM)
    assert sorted(node.op_type for node in nodes(read)) == ["Add", "Gemm", "Identity", "If"]
    assert sorted(name for name, _ in constants(read)) == ["b", "inner_weight", "w", "which"]


def test_tensors_in_nodes_are_named_by_what_they_give() -> None:
    model = line()
    put_behind(model, "Add", "one")
    model.graph.node.insert(
        1, helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32([1])))
    )
    assert [name for name, _ in constants(model)] == ["w", "b", "one"]


# What is no model.


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_truncated_file_is_refused(kept: int) -> None:
    assert "the file cannot be read as ONNX" in refusal(line().SerializeToString()[:kept])


@pytest.mark.parametrize(
    "content",
    [b"this is not a model\n" * 20, b"PK\x03\x04" + bytes(100), bytes(1000), b"\xff" * 1000, b"\x08\x0a"],
    ids=["text", "zip", "zeros", "ones", "a version alone"],
)
def test_what_is_no_model_is_refused(content: bytes) -> None:
    assert "the file cannot be read as ONNX" in refusal(content)


def test_no_flipped_bit_raises_anything_but_a_refusal() -> None:
    """A file may be broken in any way: it is read, or it is refused in one line."""
    content = line().SerializeToString()
    sentences: list[str] = []
    for position in range(len(content)):
        for bit in range(8):
            broken = bytearray(content)
            broken[position] ^= 1 << bit
            try:
                read_model(bytes(broken), FORM)
            except Refused as refusal:
                sentences.append(str(refusal))
    assert all(map(str.isprintable, sentences))
    assert len(sentences) > 4 * len(content), "most of a small file is structure"


# Data outside of the file.


def keep_outside(tensor: TensorProto, location: str) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def small(name: str) -> TensorProto:
    return numpy_helper.from_array(np.ones((1, 1), np.float32), name)


def outside_initializer(model: ModelProto, location: str) -> None:
    keep_outside(model.graph.initializer[1], location)


def outside_constant(model: ModelProto, location: str) -> None:
    put_behind(model, "Add", "one")
    model.graph.node.insert(1, helper.make_node("Constant", [], ["b"], value=keep_outside(small("b"), location)))


def outside_branch(model: ModelProto, location: str) -> None:
    put_branch(model, initializers=(keep_outside(small("b"), location),))


def outside_constant_in_branch(model: ModelProto, location: str) -> None:
    put_branch(model, helper.make_node("Constant", [], ["b"], value=keep_outside(small("b"), location)))


@pytest.mark.parametrize("place", [outside_initializer, outside_constant, outside_branch, outside_constant_in_branch])
@pytest.mark.parametrize("address", ["weights.bin", "../secret/weights.bin", "{}/weights.bin", "link.bin", "/dev/zero"])
def test_data_outside_is_refused_and_never_opened(
    place: Callable[[ModelProto, str], None], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, through the parent folder, absolute, through a link, or a device that never ends."""
    here, secret = tmp_path / "here", tmp_path / "secret"
    for folder in (here, secret):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    (here / "link.bin").symlink_to(secret / "weights.bin")
    monkeypatch.chdir(here)
    location = address.format(secret)
    model = line()
    place(model, location)
    content = model.SerializeToString()
    opened: list[str] = []
    monkeypatch.setattr(onnx, "load_external_data_for_model", lambda *given: opened.append("by onnx"))
    monkeypatch.setattr(Path, "open", lambda path, *given, **more: opened.append(str(path)))
    monkeypatch.setattr("builtins.open", lambda path, *given, **more: opened.append(str(path)))
    assert refusal(content) == f"the file keeps b outside, in {location!r}; every weight must be inside"
    assert not opened


def test_an_address_without_the_mark_is_refused_too() -> None:
    def point(model: ModelProto) -> None:
        model.graph.initializer[0].external_data.add(key="offset", value="0")

    assert refusal_of(point) == "the file keeps w outside, in 'nowhere'; every weight must be inside"


def sparse() -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0], np.int64), "indices")
    return helper.make_sparse_tensor(numpy_helper.from_array(np.float32([1]), "sparse"), indices, [1])


def sparse_initializer(model: ModelProto) -> None:
    model.graph.sparse_initializer.append(sparse())


def sparse_constant(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["s"], sparse_value=sparse()))


@pytest.mark.parametrize("edit", [sparse_initializer, sparse_constant])
def test_a_sparse_tensor_is_refused(edit: Edit) -> None:
    assert refusal_of(edit) == "the file holds a sparse tensor, which no network here has"


# Operators.


@pytest.mark.parametrize(
    ("imported", "found"),
    [
        ([("", 19)], "ai.onnx 19"),
        ([("", 21)], "ai.onnx 21"),
        ([("", 20), ("com.microsoft", 1)], "ai.onnx 20, com.microsoft 1"),
        ([("com.microsoft", 20)], "com.microsoft 20"),
        ([("", 19), ("", 20)], "ai.onnx 19, ai.onnx 20"),
        ([("", 20), ("ai.onnx", 19)], "ai.onnx 20, ai.onnx 19"),
        ([], "none"),
    ],
)
def test_another_opset_is_refused(imported: list[tuple[str, int]], found: str) -> None:
    def declare(model: ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(*entry) for entry in imported)

    assert refusal_of(declare) == f"the file's opset is {found}; ai.onnx 20 was asked for"


def test_an_operator_of_another_domain_is_refused() -> None:
    """Also where the domain is not declared: onnxruntime knows its own."""
    found = refusal_of(lambda model: put_behind(model, "Gelu", domain="com.microsoft"))
    assert found == "operator Gelu is of the domain com.microsoft; only ai.onnx is allowed"


def add_function(model: ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], [node], opset))


def add_training(model: ModelProto) -> None:
    model.training_info.add().algorithm.name = "descent"


@pytest.mark.parametrize("edit", [add_function, add_training])
def test_functions_and_training_parts_are_refused(edit: Edit) -> None:
    assert "the file holds functions or a training part of its own" in refusal_of(edit)


def random_operators() -> set[str]:
    """Those of onnx whose name or description says so."""
    schemas = [schema for schema in onnx.defs.get_all_schemas() if not schema.domain]
    return {
        schema.name
        for schema in schemas
        if "Dropout" not in schema.name
        and ("Random" in schema.name or re.search(r"random|Draws? samples|Bernoulli", schema.doc))
    }


@pytest.mark.parametrize("operator", sorted(random_operators()))
def test_a_random_operator_is_refused(operator: str) -> None:
    found = refusal_of(lambda model: put_behind(model, operator))
    assert found == f"operator {operator} is random; a prediction must be the same each time"


def test_a_random_operator_in_a_branch_is_refused() -> None:
    node = helper.make_node("RandomUniformLike", ["before"], ["drawn"])
    assert "RandomUniformLike is random" in refusal_of(lambda model: put_branch(model, node))


def train_dropout(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "train"))
    put_behind(model, "Dropout", "", "train")


def train_batch_normalization(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    put_behind(model, "BatchNormalization", "one", "one", "one", "one", training_mode=1)
    model.graph.node[-1].output.extend(["mean", "variance"])


@pytest.mark.parametrize(
    ("edit", "operator"), [(train_dropout, "Dropout"), (train_batch_normalization, "BatchNormalization")]
)
def test_an_operator_in_training_mode_is_refused(edit: Edit, operator: str) -> None:
    assert refusal_of(edit) == f"operator {operator} is in training mode"


# Names, types and sizes.


def batch(kind: str, **dimension: object) -> Edit:
    def edit(model: ModelProto) -> None:
        (value,) = getattr(model.graph, kind)
        first = value.type.tensor_type.shape.dim[0]
        first.Clear()
        for name, given in dimension.items():
            setattr(first, name, given)

    return edit


def width(kind: str, size: int) -> Edit:
    def edit(model: ModelProto) -> None:
        getattr(model.graph, kind)[0].type.tensor_type.shape.dim[1].dim_value = size

    return edit


def element(kind: str, number: int) -> Edit:
    def edit(model: ModelProto) -> None:
        getattr(model.graph, kind)[0].type.tensor_type.elem_type = number

    return edit


def rename(kind: str, name: str) -> Edit:
    def edit(model: ModelProto) -> None:
        (value,) = getattr(model.graph, kind)
        (node,) = model.graph.node
        names = getattr(node, kind)
        names[0] = value.name = name

    return edit


def one_more(kind: str) -> Edit:
    def edit(model: ModelProto) -> None:
        name = "z" if kind == "input" else "before"
        if kind == "output":
            put_behind(model, "Identity")
        values = getattr(model.graph, kind)
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]))

    return edit


def without(kind: str) -> Edit:
    def edit(model: ModelProto) -> None:
        del getattr(model.graph, kind)[:]

    return edit


def one_dimension(model: ModelProto) -> None:
    del model.graph.output[0].type.tensor_type.shape.dim[1]


def sequence(model: ModelProto) -> None:
    model.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (rename("input", "X"), "input is X float32(batch, 3)"),
        (rename("output", "Y"), "output is Y float32(batch, 1)"),
        (rename("input", "x\nx"), "input is x?x float32(batch, 3)"),
        (element("input", TensorProto.DOUBLE), "input is x float64(batch, 3)"),
        (element("input", TensorProto.FLOAT16), "input is x float16(batch, 3)"),
        (element("output", TensorProto.DOUBLE), "output is y float64(batch, 1)"),
        (element("output", TensorProto.INT64), "output is y int64(batch, 1)"),
        (element("output", 99), "output is y "),
        (width("input", 4), "input is x float32(batch, 4)"),
        (width("output", 2), "output is y float32(batch, 2)"),
        (batch("input", dim_value=7), "input is x float32(7, 3)"),
        (batch("input", dim_value=0), "input is x float32(0, 3)"),
        (batch("output", dim_value=1), "output is y float32(1, 1)"),
        (batch("input"), "input is x float32(?, 3)"),
        (batch("output", dim_param="rows"), "output is y float32(rows, 1)"),
        (one_more("input"), "input is x float32(batch, 3), z float32(batch, 1)"),
        (one_more("output"), "output is y float32(batch, 1), before float32(batch, 1)"),
        (without("input"), "input is none"),
        (without("output"), "output is none"),
        (one_dimension, "output is y float32(batch)"),
        (sequence, "output is y undefined()"),
    ],
)
def test_other_names_types_and_sizes_are_refused(edit: Edit, found: str) -> None:
    kind, name, features = ("input", "x", 3) if found.startswith("input") else ("output", "y", 1)
    sentence = refusal_of(edit)
    assert f"the file's {found}" in sentence
    assert sentence.endswith(f"; {name} float32(batch, {features}) was promised"), kind


def test_a_float32_file_does_not_stand_for_a_float64_one() -> None:
    found = refusal(line().SerializeToString(), Form(3, 1, "float64"))
    assert found == "the file's input is x float32(batch, 3); x float64(batch, 3) was promised"


# What onnx's own checker finds.


def misspell(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Gemmm"


def read_nothing(model: ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def mistype(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((1, 3)), "w"))


def misfit(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((1, 4), np.float32), "w"))


def widen(model: ModelProto) -> None:
    """Promises one column and makes two."""
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 3), np.float32), "w"))


@pytest.mark.parametrize("edit", [misspell, read_nothing, mistype, misfit, widen])
def test_what_onnx_finds_invalid_is_refused_in_its_first_line(edit: Edit) -> None:
    assert "the file is no valid ONNX: " in refusal_of(edit)


@pytest.mark.parametrize("word", [b"Gemm", b"batch"])
def test_a_word_that_is_no_text_is_refused(word: bytes) -> None:
    """Such a word comes as bytes out of protobuf."""
    content = line().SerializeToString()
    assert "the file" in refusal(content.replace(word, b"\xff\xfe" + word[2:]))
