"""What a run of fourfold costs beside a bare script: `make bench`, on an otherwise idle machine.

Times drift on shared machines, so both sides alternate in one run, and the medians' ratio is what counts.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BARE = [sys.executable, str(ROOT / "benchmarks" / "bare.py")]
FLOW = [sys.executable, str(ROOT / "flows" / "train_flow.py")]
EPOCHS_IN_PROCESS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (default 7)")
    repeats = parser.parse_args().repeats
    packages = ("torch", "prefect", "mlflow", "onnx", "onnxruntime")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", *(f"{p} {version(p)}" for p in packages))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        _processes(repeats)
        _in_process(repeats)
        shutil.rmtree(folder, ignore_errors=True)  # the last server may still be closing its database
        Path(folder).mkdir(exist_ok=True)


def _processes(repeats: int) -> None:
    """Whole processes, warm: the first of each makes databases and caches, and does not count."""
    _run(BARE), _run(FLOW)
    bare, flow = [], []
    for _ in range(repeats):
        bare.append(_run(BARE))
        flow.append(_run(FLOW))
    bare_seconds, flow_seconds = (statistics.median(one["seconds"] for one in side) for side in (bare, flow))
    print(f"whole process: bare {bare_seconds:.2f} s, train_flow {flow_seconds:.2f} s, ", end="")
    print(f"{flow_seconds / bare_seconds:.2f} times (at most 3.0, aim 2.5)")
    for name, side in (("bare", bare), ("train_flow", flow)):
        print(f"peak memory of {name}: {statistics.median(one['memory'] for one in side) / 2**20:.0f} MiB")
    print(f"peak memory of its Prefect server: {statistics.median(one['server'] for one in flow) / 2**20:.0f} MiB")


def _run(command: list[str]) -> dict[str, float]:
    """Seconds of a process, its peak memory, and the largest memory seen of the server that it started, in bytes."""
    started = time.perf_counter()
    server = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.02)
            for child in watched.children():
                try:
                    if "tasks.prefect_server" in child.cmdline():
                        server = max(server, child.memory_info().rss)
                except psutil.Error:
                    continue
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{command} failed: {process.stderr.read().decode() if process.stderr else ''}")
    return {"seconds": seconds, "memory": usage.ru_maxrss * 1024, "server": server}


def _in_process(repeats: int) -> None:
    """The step that trains and records, against the same loop bare, in this process."""
    from bare import train as bare_loop

    from fourfold.configuration import TrainConfig
    from tasks.build_model import build
    from tasks.make_data import load
    from tasks.services import prepare_environment
    from tasks.tracking import recorded_run
    from tasks.train import train

    prepare_environment()
    config = TrainConfig(epochs=EPOCHS_IN_PROCESS)

    def tracked(folder: Path) -> float:
        with recorded_run("train", "benchmark", {}, {}) as record:
            built = build(config, load(config))
            started = time.perf_counter()
            train.fn(config, built, record, folder)
            return time.perf_counter() - started

    def bare() -> float:
        started = time.perf_counter()
        bare_loop(EPOCHS_IN_PROCESS)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        bare(), tracked(Path(folder))
        pairs = [(bare(), tracked(Path(folder))) for _ in range(repeats)]
    bare_seconds, tracked_seconds = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{EPOCHS_IN_PROCESS} epochs: bare loop {bare_seconds:.2f} s, tracked fit {tracked_seconds:.2f} s, ", end="")
    print(f"{tracked_seconds / bare_seconds:.2f} times (at most 1.2)")


if __name__ == "__main__":
    main()
