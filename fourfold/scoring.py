"""From named columns to predictions, by a model file alone. Needs numpy and onnxruntime, and pandas for MLflow's part.

Each registered model carries this module, and MLflow loads it as the model's `python_function`: what is refused, filled
and predicted there is what `predict_flow` refuses, fills and predicts.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class InputError(ValueError):
    """The columns are not what the model takes: which one, what is wrong, what to do."""


class Scorer:
    """A model that predicts from named columns.

    Attributes:
        features, targets: the columns' names, in the order of the model's input and output.
        dtype: of the model's input and output.
        fills: whether the network itself fills in missing values.
        training: range, mean and deviation of the training's "features" and "targets", by column.
    """

    def __init__(self, content: bytes, threads: int = 0) -> None:
        """Load a model file's bytes.

        Args:
            threads: that predict together; 0 for one on each core.

        Raises:
            InputError: the file cannot be loaded, or does not say which columns it takes.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it warns of was judged before, and what is wrong it raises as well
        options.intra_op_num_threads = threads
        with _foreseen("load"):
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (taken,) = self.session.get_inputs()
        self.input = taken.name
        self.dtype = np.dtype(np.float64 if taken.type == "tensor(double)" else np.float32)
        try:
            self.about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
            self.features, self.targets = (_names(json.loads(self.about[kind])) for kind in ("features", "targets"))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError("the model file does not say which columns it takes") from error
        try:
            self.training = _training(json.loads(self.about.get("training", "{}")), self.features, self.targets)
        except (KeyError, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise InputError("what the model file says of its training cannot be read") from error
        self.fills = self.about.get("missing") == "mean"

    def matrix(self, columns: Mapping[str, Any], first_row: int = 1) -> np.ndarray:
        """The model's input, (rows, features), from columns of any order; others are not looked at.

        Args:
            columns: arrays of numbers or booleans by name, as a DataFrame has them; None and NaN are missing values.
            first_row: number of the first row, for messages.

        Raises:
            InputError: a column is not there, holds something else, or values that the model cannot take.
        """
        absent = [name for name in self.features if name not in columns]
        if absent:
            raise InputError(f"column {absent[0]!r} is missing; the model takes {', '.join(self.features)}")
        arrays = [_numbers(name, columns[name]) for name in self.features]
        # Each column in one piece: copying and looking at them is then as fast as memory.
        values = np.empty((len(arrays), len(arrays[0])), dtype=self.dtype)
        with np.errstate(over="ignore"):
            for number, array in enumerate(arrays):
                values[number] = array
        if not np.isfinite(values).all():
            self._refuse_faults(values, arrays, first_row)
        return values.T

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict (rows, targets) from what `matrix` gives."""
        with _foreseen("run"):
            prediction: np.ndarray = self.session.run(None, {self.input: np.ascontiguousarray(x)})[0]
        return prediction

    def _refuse_faults(self, values: np.ndarray, arrays: list[np.ndarray], first_row: int) -> None:
        for name, row, array in zip(self.features, values, arrays, strict=True):
            missing, infinite = np.isnan(row), np.isinf(row)
            if infinite.any():
                first = int(infinite.argmax())
                what = f"is {array[first]}" if np.isinf(array[first]) else f"{array[first]:g} is beyond {self.dtype}"
                raise InputError(f"column {name!r} {what} in row {first + first_row}; the model takes finite numbers")
            if missing.any() and not self.fills:
                raise InputError(
                    f"column {name!r} has no value in row {int(missing.argmax()) + first_row} ({missing.sum()} of "
                    f"{len(row)} rows here); mend it, or train the model with --missing mean"
                )


@contextmanager
def _foreseen(verb: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"onnxruntime cannot {verb} the model file: {reason}") from error


def _names(listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, list) or not listed or len({*listed}) < len(listed):
        raise ValueError("no list of different names")
    if not all(isinstance(name, str) for name in listed):
        raise TypeError("a name is a text")
    return tuple(listed)


def _training(about: Any, features: tuple[str, ...], targets: tuple[str, ...]) -> Mapping[str, Any]:
    """Check that there are four numbers for each column, or nothing at all."""
    if about == {}:
        return {}
    return {
        kind: {
            name: {key: float(about[kind][name][key]) for key in ("low", "high", "mean", "deviation")} for name in names
        }
        for kind, names in (("features", features), ("targets", targets))
    }


def _numbers(name: str, column: Any) -> np.ndarray:
    """One column as (rows,) numbers, NaN where a value is missing."""
    array = np.asarray(column)
    if array.dtype.kind == "O":
        missing = np.array([value is None or value != value or str(value) == "<NA>" for value in array], dtype=bool)
        there = array[~missing]
        wrong = [value for value in there if not isinstance(value, (bool, int, float, np.number, np.bool_))]
        if wrong:
            raise InputError(f"column {name!r} holds {_kind(np.asarray(wrong[0]))}; the model takes numbers")
        array = np.full(len(array), np.nan)
        array[~missing] = there
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise InputError(f"column {name!r} holds {_kind(array)}; the model takes numbers")
    return array


def _kind(array: np.ndarray) -> str:
    return "text" if array.dtype.kind in "US" else str(array.dtype)


class _PythonFunction:
    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, data: Any, params: Any = None) -> Any:
        """Predict a DataFrame, a column for each target, from a DataFrame with named columns."""
        import pandas as pd

        scorer = self.scorer
        prediction = scorer.predict(scorer.matrix(data))
        return pd.DataFrame(prediction, columns=list(scorer.targets), index=getattr(data, "index", None))


def _load_pyfunc(path: str) -> _PythonFunction:
    return _PythonFunction(Scorer(Path(path).read_bytes()))
