"""Trainings that are killed at chosen moments, resumed until they end, and judged by what anybody can observe.

Nothing here asks fourfold how it went: the judge reads MLflow's and Prefect's databases, the files that are left, and
the processes that live.
"""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import onnx
import psutil
import pyarrow.parquet as pq
from onnx import numpy_helper
from workplaces import Workplace, workplace_in

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS_TO_END = 5  # promised for Ctrl-C and SIGTERM
SECONDS_TO_BE_GONE = 15
SECONDS_A_RUN = 120
ENDED = {"COMPLETED", "CANCELLED", "CRASHED"}  # of Prefect's states
# Two seconds of mini-batches, with a checkpoint every fifth of a second.
TRAINING = (
    "--data", "sine", "--model", "mlp", "--hidden", "8", "--optimizer", "Adam", "--batch-size", "400", "--epochs",
    "400", "--checkpoint-seconds", "0.2", "--json",
)  # fmt: skip


@dataclass(frozen=True)
class PrefectOf:
    """Which Prefect the trainings tell of themselves.

    Attributes:
        home: a Prefect home whose database is up to date; each training gets a copy for the servers of its own.
        server: the address of a server that stays, whose home that is; then nothing is copied.
    """

    home: Path
    server: str | None = None


@dataclass(frozen=True)
class Moment:
    """When to kill: some seconds after something can be seen from outside for the first time.

    Attributes:
        seen: whether it can be seen now, of this process.
        at_most: seconds that the kill comes later, drawn evenly.
    """

    name: str
    seen: Callable[["Attempt"], bool]
    at_most: float


@dataclass
class Attempt:
    """One process of a training, while it runs."""

    workplace: Workplace
    process: "subprocess.Popen[str]"
    saved_before: set[str]
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)

    def has(self, name: str = "") -> bool:
        """Whether that lies in its temporary folder."""
        folders = (self.workplace.folder / "tmp").glob(f"fourfold-*{self.process.pid}*")
        return any((folder / name).exists() for folder in folders)

    def hears(self) -> bool:
        """Whether it has come so far that it hears SIGTERM: until then one ends any program of Python at once."""
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
            return bool(caught >> (signal.SIGTERM - 1) & 1)
        return False

    def has_saved(self) -> bool:
        return bool(checkpoints(self.workplace) - self.saved_before)

    def has_proved(self) -> bool:
        golden = (self.workplace.folder / "mlruns").glob("train/*/artifacts/golden.parquet")
        return any(path.stat().st_mtime > self.began_at for path in golden)

    def family(self) -> list[psutil.Process]:
        """The processes that it has started."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


def checkpoints(workplace: Workplace) -> set[str]:
    return {str(path) for path in (workplace.folder / "mlruns").glob("checkpoints/*/*.sha256")}


MOMENTS = (
    Moment("start-up", Attempt.hears, 5.0),
    Moment("fit", Attempt.has, 2.0),
    Moment("checkpoint", Attempt.has_saved, 0.3),
    Moment("logging", lambda attempt: attempt.has("history.parquet"), 0.1),
    Moment("export", lambda attempt: attempt.has("drawn.npz"), 1.0),
    Moment("verify", lambda attempt: attempt.has("model.onnx"), 0.5),
    Moment("register", Attempt.has_proved, 1.0),
)


def moments_by(seed: int, kills: int) -> list[Moment]:
    """So many moments, one after another, from where the seed says until all have been met."""
    return [MOMENTS[(seed + 2 * number) % len(MOMENTS)] for number in range(kills)]


@dataclass
class Kill:
    """A kill, and what was seen of it.

    Attributes:
        after: seconds from the process's start.
        code: the process's; negative for a signal that it did not handle.
        seconds: from the signal to the end.
    """

    moment: str
    signal: str
    after: float
    code: int
    seconds: float


@dataclass
class Chain:
    """A training that was killed some times, and in the end let go on.

    Attributes:
        faults: what was promised and not seen.
    """

    seed: int
    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def place(folder: Path, prefect: PrefectOf) -> Workplace:
    """An empty folder, and a folder for temporary files of its own."""
    (folder / "tmp").mkdir(parents=True)
    workplace = workplace_in(folder)
    environment = workplace.environment | {"TMPDIR": str(folder / "tmp")}
    if prefect.server:
        environment |= {"PREFECT_HOME": str(prefect.home), "PREFECT_API_URL": prefect.server}
    else:
        shutil.copytree(prefect.home, folder / "prefect")
    return replace(workplace, environment=environment)


def undisturbed(folder: Path, prefect: PrefectOf) -> dict[str, Any]:
    """What the training leaves when nobody kills it."""
    workplace = place(folder, prefect)
    ended = workplace.run(*TRAINING)
    assert ended.code == 0, ended.err
    left, faults = left_by(workplace)
    assert not faults, faults
    return left


def kill_and_resume(
    seed: int, moments: Sequence[Moment], folder: Path, prefect: PrefectOf, expected: dict[str, Any]
) -> Chain:
    """Kill a training at one moment after the other, by signals that the seed chooses; then let it end, and judge."""
    draw, chain, workplace, began_at = random.Random(seed), Chain(seed), place(folder, prefect), time.time()
    code = -1
    for moment in moments:
        how, later = draw.choice(SIGNALS), draw.uniform(0, moment.at_most)
        with started(workplace) as attempt:
            wait_for(attempt, moment, later)
            family = attempt.family()
            sent = time.monotonic()
            attempt.process.send_signal(how)
            _, err = attempt.process.communicate(timeout=SECONDS_A_RUN)
            seconds, code = time.monotonic() - sent, attempt.process.returncode
            chain.kills.append(Kill(moment.name, how.name, sent - attempt.began, code, seconds))
            chain.faults += [f"{moment.name}, {how.name}: {fault}" for fault in faults_of(attempt, how, seconds, err)]
            chain.faults += left_alive(family)
        if code == 0 or "FINISHED" in statuses(workplace).values():
            break  # it was faster
    if "FINISHED" not in statuses(workplace).values():
        ended = workplace.run(*arguments(workplace))
        code = ended.code
        if code != 0:
            chain.faults.append(f"the last process ended with {code}: {ended.err.strip()[-500:]}")
    elif code != 0:  # killed at its last breath: the next start of any flow puts things right
        ended = workplace.run("--model", "models:/sine-mlp@champion", "--at", "1", flow="predict")
        if ended.code != 0:
            chain.faults.append(f"predict_flow ended with {ended.code}: {ended.err.strip()[-500:]}")
    left, faults = left_by(workplace, since=began_at)
    chain.faults += faults
    chain.faults += [f"{name} came out as {left.get(name)}, not as {value}"[:500] for name, value in expected.items()
                     if left.get(name) != value]  # fmt: skip
    return chain


def kill(seed: int, moments: Sequence[Moment], folder: Path, prefect: PrefectOf, expected: dict[str, Any]) -> Chain:
    """The same, with a training anew where one was faster than its kill, until it was killed at as many moments."""
    chain, left, tries = Chain(seed), list(moments), 0
    while left:
        assert tries < 3 * len(moments), f"trainings end before they are killed: {chain.kills}"
        one = kill_and_resume(seed + 1000 * tries, left, folder / str(tries), prefect, expected)
        chain.kills += [each for each in one.kills if each.code != 0]
        chain.faults += one.faults
        tries += 1
        left = list(moments)[len(chain.kills) :]
    return chain


def arguments(workplace: Workplace) -> tuple[str, ...]:
    """A new training, or the one that can go on."""
    for run_id in statuses(workplace):
        if (workplace.folder / "mlruns" / "checkpoints" / run_id / "request.json").is_file():
            return "--resume", run_id, "--json"
    return TRAINING


@contextmanager
def started(workplace: Workplace) -> Iterator[Attempt]:
    saved = checkpoints(workplace)
    with workplace.start(*arguments(workplace)) as process:
        try:
            yield Attempt(workplace, process, saved)
        finally:
            process.kill()


def wait_for(attempt: Attempt, moment: Moment, later: float) -> None:
    """Wait until the moment is seen, and a while more; or until the process has ended."""
    until = time.monotonic() + SECONDS_A_RUN
    while attempt.process.poll() is None and not moment.seen(attempt):
        assert time.monotonic() < until, f"{moment.name} was never seen"
        time.sleep(0.002)
    until = time.monotonic() + later
    while attempt.process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def faults_of(attempt: Attempt, how: signal.Signals, seconds: float, err: str) -> Iterator[str]:
    """What a process that was killed has done wrong at its end."""
    code = attempt.process.returncode
    if how is signal.SIGKILL:
        if code not in (-how, 0):
            yield f"it had ended with {code}: {err.strip()[-500:]}"
        return
    if code not in (128 + how, 0):
        yield f"it ended with {code}: {err.strip()[-500:]}"
    if seconds > SECONDS_TO_END:
        yield f"it took {seconds:.1f} s to end"
    if "Traceback" in err:
        yield f"it showed a traceback: {err.strip()[:1500]}"
    with database(attempt.workplace.folder / "mlflow.db") as rows:
        own = "select run_uuid from tags where key = 'process_id' and value = ?"
        left = rows(f"select status from runs where run_uuid in ({own})", str(attempt.process.pid))
        if set(left) - {("KILLED",), ("FINISHED",)}:
            yield f"MLflow shows it as {left}: {err.strip()[-500:]}"
    # Those before may have been killed so that this one had to put them right, and did not come so far.
    if unended := set(prefect_states(attempt.workplace, since=attempt.began_at)) - ENDED:
        yield f"Prefect shows it as {unended}"


def left_by(workplace: Workplace, since: float = 0) -> tuple[dict[str, Any], list[str]]:
    """What a training that is finished has left, without what differs from run to run; and what should not be there.

    The first is as JSON holds it.
    """
    faults = []
    known = statuses(workplace)
    finished = [run_id for run_id, status in known.items() if status == "FINISHED"]
    if len(finished) != 1:
        return {}, [f"MLflow's runs are {list(known.values())}, where one should be finished"]
    if others := set(known.values()) - {"FINISHED", "KILLED"}:
        faults.append(f"runs are left {others}")
    states = prefect_states(workplace, since)
    if set(states) - ENDED or "COMPLETED" not in states:
        faults.append(f"Prefect's flow runs are {states}")
    (run_id,) = finished
    with database(workplace.folder / "mlflow.db") as rows:
        metrics = rows("select key, step, value, is_nan from metrics where run_uuid = ? order by 1, 2, 3", run_id)
        parameters = rows("select key, value from params where run_uuid = ? order by 1", run_id)
        versions = rows("select name, version, run_id, status from model_versions")
        models = rows("select status from logged_models where source_run_id = ?", run_id)
        aliases = rows("select alias, version from registered_model_aliases")
        pending = rows("select count(*) from logged_models where status not in (2, 3)")  # READY, FAILED
        sound = rows("pragma integrity_check")
    if versions != [("sine-mlp", 1, run_id, "READY")] or aliases != [("champion", 1)]:
        faults.append(f"the registry has {versions} with {aliases}")
    if [status for (status,) in models].count(2) != 1 or pending != [(0,)]:
        faults.append(f"the logged models are {models}, {pending} of them pending")
    if sound != [("ok",)]:
        faults.append(f"SQLite says {sound}")
    for pattern in ("mlruns/checkpoints/*", "tmp/fourfold-*"):
        if there := [path.name for path in workplace.folder.glob(pattern)]:
            faults.append(f"{pattern} are left: {there}")
    steps = [(key, step) for key, step, *_ in metrics]
    if len(steps) != len(set(steps)):
        faults.append("metrics have a step more than once")
    model = next(workplace.folder.glob(f"mlruns/*/{run_id}/artifacts/model.onnx"))
    history = next(workplace.folder.glob(f"mlruns/*/{run_id}/artifacts/history.parquet"))
    weights = {one.name: numpy_helper.to_array(one).tolist() for one in onnx.load(model).graph.initializer}
    left = {
        "metrics": [row for row in metrics if row[0] != "fit_seconds"],
        "parameters": parameters,
        "weights": weights,
        "history": pq.read_table(history).to_pydict(),
    }
    return json.loads(json.dumps(left)), faults


@contextmanager
def database(path: Path) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Ask a SQLite file; where it, or the table, is not there yet nothing is in it."""
    if not path.is_file():
        yield lambda *_: []
        return

    def rows(query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []

    # Not read-only: what a write that was killed has left can then not be rolled back, and nothing be read.
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=30)) as connection:
        yield rows


def statuses(workplace: Workplace) -> dict[str, str]:
    """Of MLflow's runs of trainings, in the order in which they were opened."""
    query = "select run_uuid, r.status from runs r join experiments e using (experiment_id) where e.name = 'train'"
    with database(workplace.folder / "mlflow.db") as rows:
        return dict(rows(f"{query} order by start_time"))


def prefect_states(workplace: Workplace, since: float = 0) -> list[str]:
    moment = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S")
    with database(Path(workplace.environment["PREFECT_HOME"]) / "prefect.db") as rows:
        return [state for (state,) in rows("select state_type from flow_run where created >= ?", moment)]


def left_alive(family: list[psutil.Process]) -> list[str]:
    """Processes of a flow that outlive it."""
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_BE_GONE)
    return [f"process {one.pid} outlives the flow" for one in alive if one.status() != psutil.STATUS_ZOMBIE]
