"""Twenty kills of real trainings; `make bench-faults` makes two hundred."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.harness import PrefectOf, kill, moments_by, undisturbed


@pytest.fixture
def expected(made_once: Callable[[str, Callable[[Path], None]], Path], prefect_home: Path) -> dict[str, Any]:
    def fill(folder: Path) -> None:
        (folder / "left.json").write_text(json.dumps(undisturbed(folder / "run", PrefectOf(prefect_home))))

    left: dict[str, Any] = json.loads((made_once("undisturbed", fill) / "left.json").read_text())
    return left


@pytest.fixture
def prefect(request: pytest.FixtureRequest) -> PrefectOf:
    """Servers of the flows' own, which go with them, or one that stays."""
    if request.param == "its own":
        return PrefectOf(request.getfixturevalue("prefect_home"))
    return PrefectOf(request.getfixturevalue("server_home"), request.getfixturevalue("prefect_server"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "kills", "prefect"),
    [(0, 6, "its own"), (1, 7, "a server"), (2, 7, "a server")],
    indirect=["prefect"],
)
def test_a_training_that_is_killed_again_and_again_ends_as_if_it_never_was(
    seed: int, kills: int, prefect: PrefectOf, tmp_path: Path, expected: dict[str, Any]
) -> None:
    chain = kill(seed, moments_by(seed, kills), tmp_path, prefect, expected)
    assert not chain.faults, "\n".join([*chain.faults, *map(str, chain.kills)])
    assert len(chain.kills) == kills
