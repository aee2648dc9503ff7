"""The pictures of one fit, made of the arrays that `tasks.picture` hands over."""

from collections.abc import Mapping

import numpy as np

from tasks.panels import COLORS, Curve, Panel, style

MOST_PARAMETERS = 16
TRAINING, HELD_OUT, LINE = COLORS[0], COLORS[3], COLORS[7]


def fit_panels(arrays: Mapping[str, np.ndarray]) -> tuple[Panel, ...]:
    """The loss and the parameters over the epochs and, of a fit that completed, its predictions.

    Args:
        arrays: as `tasks.draw.draw` has them, and `parameters`, (rows, columns), with their `parameter_names` and the
            `epochs` of these rows.
    """
    label = str(arrays["loss_label"])
    epochs = arrays["epochs"]
    (loss,) = _over_epochs((label,), epochs, arrays["loss"][epochs, None])
    found = [Panel("loss", "Loss", "epoch", label, False, _has_logarithms(loss.y), "After each epoch.", (loss,))]
    names = tuple(map(str, arrays["parameter_names"]))
    if names:
        found.append(_parameters(names, epochs, arrays["parameters"]))
    if "training_x" in arrays:
        if len(arrays["features"]) == 1:
            found.append(_over_the_feature(arrays))
        found.append(_against_targets(arrays))
    return tuple(found)


def _parameters(names: tuple[str, ...], epochs: np.ndarray, values: np.ndarray) -> Panel:
    norms = names[0].startswith("norm/")
    curves = _over_epochs(names[:MOST_PARAMETERS], epochs, values)
    note = "Each tensor's Euclidean norm." if norms else "In the units of the data, where the network is linear."
    left_out = f" The first {MOST_PARAMETERS} of {len(names)}." if len(names) > MOST_PARAMETERS else ""
    title = "Norms of the weights" if norms else "Parameters"
    return Panel("parameters", title, "epoch", "value", False, False, note + left_out, tuple(curves))


def _over_the_feature(arrays: Mapping[str, np.ndarray]) -> Panel:
    x, fitted = arrays["training_x"][:, 0], arrays["training_prediction"][:, 0]
    order = x.argsort()
    curves = [
        Curve(_words(kind), color, "", rows[:, 0], arrays[f"{kind}_y"][:, 0])
        for kind, color in (("training", TRAINING), ("held_out", HELD_OUT))
        if len(rows := arrays[f"{kind}_x"])
    ]
    curves.append(Curve("prediction", LINE, "solid", x[order], fitted[order]))
    feature, target = str(arrays["features"][0]), str(arrays["targets"][0])
    return Panel("fit", "Fit", feature, target, False, False, "The rows, and what is predicted there.", tuple(curves))


def _against_targets(arrays: Mapping[str, np.ndarray]) -> Panel:
    kind, color = ("held_out", HELD_OUT) if len(arrays["held_out_y"]) else ("training", TRAINING)
    actual, predicted = arrays[f"{kind}_y"][:, 0].astype(float), arrays[f"{kind}_prediction"][:, 0].astype(float)
    ends = np.array([actual.min(), actual.max()])
    target = str(arrays["targets"][0])
    curves = (
        Curve("as it is", LINE, "dashed", ends, ends),
        Curve(f"{_words(kind)} rows", color, "", actual, predicted),
    )
    others = f" Of {len(arrays['targets'])} targets the first." if len(arrays["targets"]) > 1 else ""
    note = f"Of {_words(kind)} rows; on the dashed line a prediction is right.{others}"
    title = "Predictions against targets"
    return Panel("predictions", title, f"actual {target}", f"predicted {target}", False, False, note, curves)


def _over_epochs(names: tuple[str, ...], epochs: np.ndarray, values: np.ndarray) -> list[Curve]:
    shown = np.where(np.isfinite(values), values, np.nan)
    return [Curve(name, *style(i), epochs.astype(float), shown[:, i]) for i, name in enumerate(names)]


def _has_logarithms(values: np.ndarray) -> bool:
    there = values[np.isfinite(values)]
    return len(there) > 0 and bool(there.min() > 0)


def _words(kind: str) -> str:
    return kind.replace("_", "-")
