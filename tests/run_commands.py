"""Run every line that README, the documents and --help tell a person to type: `make commands`, some minutes.

In a copy of the checkout with a home of its own. Trainings are made short, addresses are those of this machine, and a
server is asked whether it answers, and ended.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from commands import FILES, Command, in_documents, of_help
from servers.running import answers, free_port, until
from workplaces import ROOT, clean_environment

SECONDS = 300
SECONDS_OF_SCHEDULER = 65  # Prefect's writes down the next runs once a minute
# Lines that something else runs, or that nobody would want to be run here.
LEFT_OUT = {
    r"^make (check|test|coverage)|pytest|ruff": "the suite itself",
    r"^make bench|benchmarks/": "measurements of many minutes; tests/test_benchmarks.py starts them",
    r"^make train": "the same flow",
    r"^sudo |mlflow server|--host 127\.0\.0\.1 --port 4200|\[servers\]": "tests/servers runs them",
    r"pip install": "tests/test_packaging.py builds what they install",
    r"tls": "needs certificates",
    r"^fourfold --install-completion": "tests/test_packaging.py asks for it",
    r"^mlflow (models serve|server)$": "the name of a command",
}
SHORT = {"--epochs": "50", "--budget": "10", "--learning-rates": "3", "--seeds": "2", "--steps": "20"}
OF_FLOW = {
    "flows/train_flow.py": ("--epochs",),
    "flows/compare_flow.py": ("--budget", "--learning-rates", "--seeds"),
    "flows/tutorial_flow.py": ("--steps",),
}


@dataclass
class Place:
    """The copy, and what has been run in it."""

    folder: Path
    environment: dict[str, str]
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in ("4200", "5001", "8786")})
    failed: list[str] = field(default_factory=list)
    done: set[tuple[str, ...]] = field(default_factory=set)

    def words(self, command: Command) -> list[str]:
        """What is run for a line: the program of this environment, short, on this machine."""
        arguments = list(command.arguments)
        for option in OF_FLOW.get(command.program, ()):
            if option in arguments:
                arguments[arguments.index(option) + 1] = SHORT[option]
            elif "--resume" not in arguments:
                arguments += [option, SHORT[option]]
        if "--overwrite" not in arguments and "--output" in arguments:
            arguments.append("--overwrite")
        shown = {"10.0.0.5": "127.0.0.1", **{name: str(port) for name, port in self.ports.items()}}
        for name, meant in shown.items():
            arguments = [argument.replace(name, meant) for argument in arguments]
        if command.program.endswith(".py"):
            return [sys.executable, command.program, *arguments]
        return [sys.executable, "-m", command.program.replace("fourfold", "flows"), *arguments]

    def run(self, command: Command) -> str:
        """Run a line unless it was run before, and give what it said."""
        words = self.words(command)
        if tuple(words) in self.done:
            return ""
        self.done.add(tuple(words))
        started = time.monotonic()
        ended = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=SECONDS,
        )  # fmt: skip
        self.tell(command, ended.returncode == 0, time.monotonic() - started, ended.stdout + ended.stderr)
        return ended.stdout

    def tell(self, command: Command, good: bool, seconds: float, said: str) -> None:
        """Print how a line went."""
        print(f"{'ok' if good else 'FAILED':6} {seconds:5.1f} s  {command.place}: {command.line}", flush=True)
        if not good:
            self.failed.append(command.line)
            print(textwrap.indent(said[-3000:], "       "), flush=True)

    @contextmanager
    def started(self, command: Command, is_there: Callable[[str], bool], *more: str) -> Iterator[None]:
        """Have a line run beside a block, from when it is there until it is told to end as by Ctrl-C."""
        log, begun = self.folder / f"{uuid.uuid4().hex}.log", time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self.words(command), *more], cwd=self.folder, env=self.environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            good = True
            try:
                until(lambda: process.poll() is not None or is_there(log.read_text()))
            except AssertionError:
                good = False
            self.tell(command, good and process.poll() is None, time.monotonic() - begun, log.read_text())
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    """Run them, those first that need no server; 1 where one failed."""
    with tempfile.TemporaryDirectory(prefix="fourfold-commands-", ignore_cleanup_errors=True) as temporary:
        place = copy(Path(temporary))
        lines = [command for command in of_help() + in_documents() if not left_out(command)]
        flows = [one for one in lines if one.program in FILES or one.program == "fourfold"]
        scheduled = [one for one in flows if "--serve" in one.arguments or "serve_check" in one.program]
        far = [one for one in flows if any(argument.startswith("dask://") for argument in one.arguments)]
        alone = [one for one in flows if one not in scheduled and one not in far]
        # Those that name a model or a run come after those that make one.
        alone.sort(key=lambda one: any(re.match("models:|latest", argument) for argument in one.arguments))
        for command in alone:
            if "--resume" in command.arguments:
                stop_a_training(place)
            place.run(command)
        mlflow(place, [one for one in lines if one.program == "mlflow"])
        dask(place, [one for one in lines if one.program == "dask"], far)
        prefect(place, [one for one in lines if one.program == "prefect"], scheduled)
        ran = {one.program for one in lines}
        print(f"{len(place.done)} lines were run, {len(place.failed)} failed; programs: {', '.join(sorted(ran))}")
        return 1 if place.failed else 0


def left_out(command: Command) -> bool:
    """Whether a line is not run here; says why."""
    typed = shlex.join([command.program, *command.arguments]).replace("'", "")
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, typed):
            print(f"{'-':6} {'':7}  {command.place}: {command.line}  ({reason})")
            return True
    return False


def copy(folder: Path) -> Place:
    """Make the copy, the data and the network that the lines name."""
    place = folder / "fourfold"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "mlflow.db*", "mlruns", "__pycache__", "*.log"))
    shutil.copy(ROOT / ".gitignore", place)
    random = np.random.default_rng(0)
    area, rooms = random.uniform(20, 200, 200), random.integers(1, 8, 200)
    prices = area * 3 + rooms * 10 + random.normal(0, 5, 200)
    rows = pa.table({"id": np.arange(200), "date": ["2026-11-24"] * 200, "area": area, "rooms": rooms})
    features = rows.drop_columns(["id", "date"])
    pa.csv.write_csv(features.append_column("price", [prices]), place / "houses.csv")
    pa.parquet.write_table(features.append_column("y", [prices]), place / "points.parquet")
    pa.parquet.write_table(features.append_column("revenue", [prices]), place / "sales.parquet")
    pa.csv.write_csv(rows, place / "new.csv")
    (place / "rows").mkdir()
    for part in range(2):
        pa.parquet.write_table(rows.slice(part * 100, 100), place / "rows" / f"{part}.parquet")
    (place / "mypackage").mkdir()
    page = (ROOT / "docs" / "own-models.md").read_text()
    (network,) = re.findall(r"^(    # mypackage/nets\.py\n(?:    .*\n|\n)+)", page, flags=re.MULTILINE)
    (place / "mypackage" / "nets.py").write_text(textwrap.dedent(network))
    home = {"HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(place)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return Place(place, clean_environment() | home | {"PATH": path, "DO_NOT_TRACK": "true"})


def stop_a_training(place: Place) -> None:
    """Leave one for `--resume latest`."""
    command = [sys.executable, "flows/train_flow.py", "--epochs", "20000", "--checkpoint-seconds", "0.2"]
    kept = place.folder / "mlruns" / "checkpoints"
    before = set(kept.rglob("*.safetensors"))
    with subprocess.Popen(
        command, cwd=place.folder, env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until(lambda: set(kept.rglob("*.safetensors")) - before or process.poll() is not None)
        process.send_signal(signal.SIGINT)


def mlflow(place: Place, lines: list[Command]) -> None:
    """The pages, a model that is served, a model that is fetched."""
    for command in lines:
        if command.arguments == ("ui",):
            if ("ui",) not in place.done:
                place.done.add(("ui",))
                port = str(free_port())
                with place.started(command, lambda _, port=port: answers(f"http://127.0.0.1:{port}/"), "--port", port):  # type: ignore[misc]
                    pass
        elif command.arguments[:2] == ("models", "serve"):
            place.done.add(command.arguments)
            with place.started(command, lambda _: answers(f"http://127.0.0.1:{place.ports['5001']}/ping")):
                pass
        else:
            place.run(command)


def dask(place: Place, lines: list[Command], far: list[Command]) -> None:
    """A scheduler and its workers, for the flows that name them."""
    scheduler = next(one for one in lines if one.arguments[0] == "scheduler")
    worker = next(one for one in lines if one.arguments[0] == "worker")
    address = ["--port", str(place.ports["8786"]), "--dashboard-address", "127.0.0.1:0"]
    place.done |= {scheduler.arguments, worker.arguments}
    with (
        place.started(scheduler, lambda said: "Scheduler at" in said, *address),
        place.started(worker, lambda said: "Registered to" in said, "--dashboard-address", "127.0.0.1:0"),
    ):
        for command in far:
            place.run(command)


def prefect(place: Place, lines: list[Command], scheduled: list[Command]) -> None:
    """The server, a worker, the deployments, and the flows that are served."""
    server = next(one for one in lines if one.arguments == ("server", "start"))
    worker = next(one for one in lines if one.arguments[:2] == ("worker", "start"))
    place.done |= {server.arguments, worker.arguments}
    for command in lines:
        if command.arguments[0] == "config":
            place.run(command)
    port = place.ports["4200"]
    with (
        place.started(server, lambda _: answers(f"http://127.0.0.1:{port}/api/health"), "--port", str(port)),
        place.started(worker, lambda said: "started!" in said),
    ):
        schedule = ""
        for command in sorted(
            lines, key=lambda one: "deploy" not in one.arguments
        ):  # there before they are asked about
            if command.arguments[0] in ("config", "server", "worker"):
                continue
            if "SCHEDULE_ID" in command.arguments:
                meant = tuple(schedule if one == "SCHEDULE_ID" else one for one in command.arguments)
                command = Command(command.place, command.line, command.program, meant)
            said = place.run(command)
            schedule = next(iter(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)), schedule)
        changed = time.monotonic()
        for command in sorted(scheduled, key=lambda one: "--serve" in one.arguments):
            if "--serve" in command.arguments:
                place.done.add(command.arguments)
                with place.started(command, lambda said: "serving " in said):
                    pass
            else:
                time.sleep(max(0, changed + SECONDS_OF_SCHEDULER - time.monotonic()))
                place.run(command)


if __name__ == "__main__":
    sys.exit(main())
