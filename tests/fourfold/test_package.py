"""What importing the engine costs."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["fourfold", "fourfold.configuration", "fourfold.errors"])
def test_importing_it_loads_none_of_the_heavy_packages(module: str) -> None:
    heavy = ("torch", "prefect", "mlflow", "onnxruntime", "pyarrow")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.split() == []
