"""What is built of the project holds what it must and nothing else, and runs from anywhere."""

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from workplaces import ROOT, SECONDS_TO_FINISH, Workplace

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"
ROOMS = ("flows", "tasks", "models", "fourfold")
OF_THE_ROOMS = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).iterdir() if path.suffix}
BUILD = "import setuptools.build_meta as build, sys; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, target: Path) -> Path:
    """A file of the backend that pip uses, without network and without a folder for the build alone."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    told = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True, timeout=SECONDS_TO_FINISH)
    return target / told.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def built(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with the sdist, the wheel that is built from what the sdist holds, and that wheel unpacked."""

    def fill(folder: Path) -> None:
        source = folder / "source"
        shutil.copytree(
            ROOT, source,
            ignore=lambda place, names: [
                name for name in names
                if name.startswith((".", "__pycache__", "mlflow.db")) or name.endswith(".egg-info")
                or (Path(place) == ROOT and name in ("build", "dist", "mlruns"))
            ],
        )  # fmt: skip
        with tarfile.open(build("sdist", source, folder)) as sdist:
            sdist.extractall(folder, filter="data")
        with zipfile.ZipFile(build("wheel", folder / NAME, folder)) as wheel:
            wheel.extractall(folder / "installed")

    return made_once("built", fill)


def test_the_sdist_holds_what_installs_and_deploys(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        held = {member.name.removeprefix(f"{NAME}/") for member in sdist if member.isfile()}
    beside = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "MANIFEST.in",
        "pyproject.toml",
        "constraints.txt",
        "prefect.yaml",
    }
    made = {name for name in held if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert held == OF_THE_ROOMS | beside | made


def test_the_wheel_holds_the_rooms_and_what_is_told_of_them(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        held = set(wheel.namelist())
        told = wheel.read(f"{NAME}.dist-info/METADATA").decode()
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert held == OF_THE_ROOMS | {f"{NAME}.dist-info/{name}" for name in about}
    assert (ROOT / "README.md").read_text().strip() in told


def test_a_flow_of_the_wheel_keeps_its_runs_where_it_is_started(
    built: Path, workplace: Workplace, shared_server: None
) -> None:
    """By the console script's function, in a folder without a checkout."""
    installed = built / "installed"
    script = (installed / f"{NAME}.dist-info" / "entry_points.txt").read_text()
    assert "fourfold = flows.__main__:main" in script
    environment = workplace.environment | {"PYTHONPATH": str(installed)}
    del environment["MLFLOW_TRACKING_URI"]
    ended = subprocess.run(
        [sys.executable, "-c", "from flows.__main__ import main; main()", "train", "--epochs", "5", "--json"],
        cwd=workplace.folder, env=environment, capture_output=True, text=True, timeout=SECONDS_TO_FINISH, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    run = workplace.client.get_run(result["run_id"])  # of the file mlflow.db in that folder
    assert run.info.status == "FINISHED"
    kept = workplace.folder / "mlruns" / "train" / result["run_id"] / "artifacts"
    assert (kept / "report.html").is_file()
    assert (kept / "parity.html").is_file()
    assert Path(result["model"]["path"]).is_relative_to(workplace.folder)


def test_the_version_is_that_of_pyproject_alone(built: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows", "--version"], cwd=built / "installed", capture_output=True, text=True,
        timeout=SECONDS_TO_FINISH, check=True, env={"PYTHONPATH": str(built / "installed")},
    )  # fmt: skip
    assert ended.stdout.strip() == PROJECT["version"]
    elsewhere = [
        path for room in ROOMS for path in (ROOT / room).glob("*.py") if PROJECT["version"] in path.read_text()
    ]
    assert elsewhere == []
