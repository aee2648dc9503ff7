"""The benchmarks are run by hand: here they are only started, so that none is broken by what they import."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(set(re.findall(r"benchmarks/(\w+)\.py", (ROOT / "Makefile").read_text())))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_that_make_runs_starts(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: ")
