"""Twenty kills of real trainings; `make bench-faults` makes two hundred."""

from pathlib import Path
from typing import Any

import pytest
from faults.harness import MOMENTS, kill, undisturbed

KILLS_A_CHAIN = 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> dict[str, Any]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "run", prefect_home)


@pytest.mark.parametrize("seed", range(5))
def test_a_training_that_is_killed_again_and_again_ends_as_if_it_never_was(
    seed: int, tmp_path: Path, prefect_home: Path, expected: dict[str, Any]
) -> None:
    moments = [MOMENTS[(seed + 2 * number) % len(MOMENTS)] for number in range(KILLS_A_CHAIN)]
    chain = kill(seed, moments, tmp_path, prefect_home, expected)
    assert not chain.faults, "\n".join([*chain.faults, *map(str, chain.kills)])
    assert len(chain.kills) == KILLS_A_CHAIN
