"""From named columns to predictions, by a model file alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fourfold import scoring
from fourfold.onnx_export import export
from fourfold.scoring import InputError, Scorer


@pytest.fixture(params=["float32", "float64"], scope="module")
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """Y = 2 a - b, and twice that; it keeps nothing of what it is given."""
    return scorer_of(tmp_path_factory.mktemp(request.param), request.param)


def scorer_of(folder: Path, dtype: str, missing: str = "error") -> Scorer:
    network = nn.Linear(2, 2).to(getattr(torch, dtype))
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[2.0, -1.0], [4.0, -2.0]]))
        network.bias.zero_()
    about = {"features": json.dumps(["a", "b"]), "targets": json.dumps(["y", "z"]), "missing": missing}
    path = folder / "model.onnx"
    export(network, torch.zeros(2, 2, dtype=getattr(torch, dtype)), path, about)
    return Scorer(path.read_bytes())


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2], "b": [3, 4]},
        {"b": np.array([3, 4], dtype=np.uint8), "c": ["x", "y"], "a": np.array([1.0, 2.0], dtype=np.float16)},
        pd.DataFrame({"b": pd.array([3, 4], dtype="Int64"), "a": pd.Series([1, 2], dtype=object)}),
        pd.DataFrame({"b": [3, 4], "a": [1, 2]}, index=[7, 5]),
    ],
    ids=["lists", "arrays and others", "nullable and objects", "an index of its own"],
)
def test_columns_of_any_order_and_type_of_number_are_taken(columns: Any, scorer: Scorer) -> None:
    x = scorer.matrix(columns)
    assert x.dtype == scorer.dtype
    assert scorer.predict(x).tolist() == [[-1.0, -2.0], [0.0, 0.0]]


def test_booleans_are_zero_and_one(scorer: Scorer) -> None:
    assert scorer.matrix({"a": [True, False], "b": pd.Series([True, True], dtype="boolean")}).tolist() == [
        [1, 1],
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [1.0]}, "column 'b' is missing; the model takes a, b"),
        ({"a": ["1.0"], "b": [1.0]}, "column 'a' holds text; the model takes numbers"),
        ({"a": pd.Series([1.0, "2"]), "b": [1.0, 2.0]}, "column 'a' holds text; the model takes numbers"),
        ({"a": pd.Series(["1.0"], dtype="string"), "b": [1.0]}, "column 'a' holds text; the model takes numbers"),
        ({"a": [1.0], "b": [1j]}, "column 'b' holds complex128; the model takes numbers"),
        ({"a": np.array(["2026-01-01"], dtype="datetime64[D]"), "b": [1]}, "column 'a' holds datetime64"),
        ({"a": [[1.0]], "b": [1.0]}, "column 'a' holds"),
        ({"a": [1.0, np.nan], "b": [1.0, 2.0]}, r"column 'a' has no value in row 2 \(1 of 2 rows here\)"),
        ({"a": [1.0, None], "b": [1.0, 2.0]}, r"column 'a' has no value in row 2"),
        ({"a": pd.array([None, 2], dtype="Int64"), "b": [1.0, 2.0]}, r"column 'a' has no value in row 1"),
        ({"a": [1.0], "b": [-np.inf]}, "column 'b' is -inf in row 1; the model takes finite numbers"),
    ],
    ids=str,
)
def test_what_the_model_cannot_take_is_refused_by_name(columns: Any, said: str, scorer: Scorer) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        scorer.matrix(columns)
    assert "\n" not in str(refusal.value)


def test_a_number_beyond_float32_is_refused_only_there(tmp_path: Path) -> None:
    columns = {"a": [1.0, 1e300], "b": [1.0, 2.0]}
    with pytest.raises(InputError, match=r"column 'a' 1e\+300 is beyond float32 in row 42"):
        scorer_of(tmp_path, "float32").matrix(columns, first_row=41)
    assert scorer_of(tmp_path, "float64").matrix(columns)[1, 0] == 1e300


def test_missing_values_go_through_to_a_network_that_fills_them(tmp_path: Path) -> None:
    x = scorer_of(tmp_path, "float32", "mean").matrix({"a": [1.0, None], "b": [np.nan, 2.0]})
    assert np.isnan(x).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"features": "a, b", "targets": "[]"},
        {"features": "3", "targets": "[]"},
        {"features": "[" * 100_000, "targets": '["y"]'},
        {"features": '["a", "a"]', "targets": '["y"]'},
        {"features": "[null, 1]", "targets": '["y"]'},
        {"features": '"ab"', "targets": '["y"]'},
    ],
    ids=lambda about: str(about)[:40],
)
def test_a_file_that_names_no_columns_is_refused(about: dict[str, str]) -> None:
    with pytest.raises(InputError, match="does not say which columns it takes"):
        Scorer(saying(about))


@pytest.mark.parametrize("training", ["[]", "5", '{"features": {"a": {}}}', "[" * 100_000], ids=lambda text: text[:20])
def test_a_file_that_says_nonsense_of_its_training_is_refused(training: str) -> None:
    with pytest.raises(InputError, match="what the model file says of its training cannot be read"):
        Scorer(saying({"features": '["a", "b"]', "targets": '["y"]', "training": training}))


def test_a_file_that_onnxruntime_cannot_load_is_refused_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    broken = onnx.load_model_from_string(saying({"features": '["a", "b"]', "targets": '["y", "z"]'}))
    broken.graph.node[0].op_type = "Nothing"
    with pytest.raises(InputError, match=r"^onnxruntime cannot load the model file: .*Nothing") as refusal:
        Scorer(broken.SerializeToString())
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_onnxruntime_cannot_run_is_refused_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    scorer = Scorer(saying({"features": '["a", "b"]', "targets": '["y", "z"]'}))
    with pytest.raises(InputError, match=r"^onnxruntime cannot run the model file: ") as refusal:
        scorer.predict(np.zeros((1, 3), dtype=np.float32))
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def saying(about: dict[str, str]) -> bytes:
    """A model file that says this of itself."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, about)
    return bytes(model.SerializeToString())


def test_it_works_as_a_file_of_its_own_without_fourfold(tmp_path: Path) -> None:
    """As each registered model carries it."""
    scorer_of(tmp_path, "float32")
    (tmp_path / "alone.py").write_text(Path(scoring.__file__).read_text())
    script = (
        "import sys, pandas as pd\n"
        "sys.modules['fourfold'] = sys.modules['torch'] = None\n"
        "import alone\n"
        "frame = pd.DataFrame({'b': [3], 'a': [1]}, index=[9])\n"
        "answer = alone._load_pyfunc('model.onnx').predict(frame)\n"
        "print(answer.to_dict('index'))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stdout == "{9: {'y': -1.0, 'z': -2.0}}\n", ended.stderr
