"""What all tests share."""

import os
import shutil
import signal
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "true")  # MLflow decides when it is imported
# A job in the background is started with Ctrl-C ignored, and hands that on to the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

from workplaces import Workplace, make_prefect_home, workplace_in

import fourfold  # noqa: F401 - before any test loads onnxruntime: it turns its telemetry off


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect home whose database is up to date: making it takes ten seconds, copying it none."""
    home = tmp_path_factory.mktemp("prefect-home")
    make_prefect_home(home)
    return home


@pytest.fixture
def workplace(tmp_path: Path, prefect_home: Path) -> Workplace:
    folder = tmp_path / "a place with spaces"
    folder.mkdir()
    shutil.copytree(prefect_home, folder / "prefect")
    return workplace_in(folder)


@pytest.fixture
def empty_workplace(tmp_path: Path) -> Workplace:
    """One where Prefect has never been, either."""
    return workplace_in(tmp_path)
