"""The exercise's eight optimizers after 100 and after 1,000 epochs: README's table, and its picture.

python docs/epochs.py        # writes docs/images/epochs.png and prints the table
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fourfold.configuration import EIGHT, TrainConfig
from fourfold.fitting import fit
from tasks.build_model import build
from tasks.make_data import load
from tasks.panels import COLORS, DASHES
from tasks.train import fit_config

EPOCHS = (100, 1000)
POINT, ANSWER = 4.0, 8.0


def curves(optimizer: str) -> dict[str, np.ndarray]:
    """W, b, the prediction at 4, and the loss, after each number of epochs: 1,000 pass the state after 100."""
    config = TrainConfig(optimizer=optimizer, epochs=EPOCHS[-1])
    built = build(config, load(config))
    history = fit(built.core, built.x, built.y, fit_config(config)).history
    found = built.curves(history)
    return {**found, "y": found["w"] * POINT + found["b"], "loss": history.loss}


def table(of: dict[str, dict[str, np.ndarray]]) -> str:
    """As README has it."""
    lines = ["| optimizer | w, b after 100 | y(4) | w, b after 1,000 | y(4) | loss |", "|---|---|---|---|---|---|"]
    for name, found in of.items():
        cells = [name]
        for epochs in EPOCHS:
            w, b, y = (found[key][epochs] for key in ("w", "b", "y"))
            cells += [f"{w:.4f}, {b:.4f}".replace("-0.0000", "0.0000"), f"{y:.4f}"]
        cells.append(f"{found['loss'][EPOCHS[-1]]:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(of: dict[str, dict[str, np.ndarray]], picture: Path) -> None:
    """The prediction and the loss over the epochs."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(EPOCHS[-1] + 1)
    for number, (name, found) in enumerate(of.items()):
        style = {"color": COLORS[number], "linestyle": DASHES[number % len(DASHES)], "label": name}
        left.plot(epochs, found["y"], **style)
        right.plot(epochs, found["loss"], **style)
    left.axhline(ANSWER, color="#333333", linewidth=0.8)
    left.set(
        title="Prediction at x = 4 (the answer is 8)",
        xlabel="epochs",
        ylabel="y",
        ylim=(0, 10),
    )
    right.set(title="Squared error, summed", xlabel="epochs", ylabel="loss", yscale="log")
    for axes in (left, right):
        axes.set(xscale="symlog", xlim=(0, None))
        axes.axvline(EPOCHS[0], color="#333333", linewidth=0.8, linestyle="dotted")
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    all_of_them = {name: curves(name) for name in EIGHT}
    draw(all_of_them, Path(__file__).parent / "images" / "epochs.png")
    print(table(all_of_them))
