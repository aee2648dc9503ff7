"""A browser, and what it is pointed at: pages of real runs, and the servers that kept them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import Browser, why_not
from looking import look
from visiting import Visited, kept_runs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if why_not():
        pytest.skip(why_not())
    with Browser.running() as running:
        yield running


@pytest.fixture(scope="session")
def visited(
    made_once: Callable[[str, Callable[[Path], None]], Path], prefect_home: Path, empty_database: Path
) -> Visited:
    """What two flows left in both services, and what their pages show of it."""
    if why_not():
        pytest.skip(why_not())

    def visit(folder: Path) -> None:
        shutil.copytree(prefect_home, folder / "prefect-server")
        shutil.copy(empty_database, folder / "mlflow.db")
        random = np.random.default_rng(0)
        areas = random.uniform(40, 200, 60)
        prices = 3 * areas + 50 + random.normal(0, 25, 60)
        rows = "".join(f"{area:.1f},{price:.1f}\n" for area, price in zip(areas, prices, strict=True))
        (folder / "houses.csv").write_text(f"area,price\n{rows}")
        problem = ("--data", "houses.csv", "--target", "price", "--optimizers", "SGD,Adam", "--budget", "40")
        asked = {"train": ("train",), "compare": ("compare", *problem, "--seeds", "3", "--learning-rates", "4")}
        with kept_runs(folder, asked) as kept, Browser.running() as browser:
            told = {"results": dict(kept.results), "seen": look(browser, kept)}
        (folder / "told.json").write_text(json.dumps(told))

    folder = made_once("browser", visit)
    told = json.loads((folder / "told.json").read_text())
    return Visited(folder / "artifacts", told["results"], told["seen"])
