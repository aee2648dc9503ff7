"""The gate can fail: it refuses every file that is wrong in one way, and passes the file as it was exported."""

from pathlib import Path

import pytest
from mutants import MUTANTS, SUBJECTS, Faithful, Mutant, Subject, applicable

from fourfold.gate import verify

NETWORKS = [pytest.param(subject, id=subject.name) for subject in SUBJECTS]
PAIRS = [
    pytest.param(subject, mutant, id=f"{subject.name}: {mutant.name}")
    for subject in SUBJECTS
    for mutant in applicable(subject)
]


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> dict[Subject, Faithful]:
    folder = tmp_path_factory.mktemp("faithful")
    return {subject: Faithful.of(subject, folder) for subject in SUBJECTS}


@pytest.mark.parametrize("subject", NETWORKS)
def test_the_file_as_exported_passes(subject: Subject, faithful: dict[Subject, Faithful]) -> None:
    original = faithful[subject]
    report = verify(subject.network, original.exported, original.expectations)
    assert report.passed, report.reason
    assert report.summary()["worst_ratio"] < 1


@pytest.mark.parametrize(("subject", "mutant"), PAIRS)
def test_a_mutant_is_killed(
    subject: Subject, mutant: Mutant, faithful: dict[Subject, Faithful], tmp_path: Path
) -> None:
    original = faithful[subject]
    report = verify(subject.network, original.mutated(mutant, tmp_path), original.expectations)
    assert not report.passed, f"survived, with {report.summary()['worst_ratio']:.2f} of what is allowed"
    assert report.reason
    assert "the file's bytes are others" not in report.reason, "the hash alone proves nothing here"


def test_every_mutant_applies_somewhere_and_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert {mutant.name for subject in SUBJECTS for mutant in applicable(subject)} == set(names)
