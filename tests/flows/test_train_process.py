"""`python flows/train_flow.py` as a user runs it: a process, with its store, its Prefect server and its end."""

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from pickles import pickles_in
from workplaces import ROOT, SECONDS_TO_FINISH, Ended, Workplace, search_lines, workplace_in

STEPS = ["make data", "build model", "train", "evaluate", "export to ONNX", "verify with onnxruntime", "register"]
SECONDS_TO_BE_GONE = 10
# As sitecustomize.py in a folder on the path.
SPY = """
import socket, sys

def note(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        with open({log!r}, "a") as log:
            log.write(str(arguments[1][0]) + "\\n")
    if event == "socket.bind" and isinstance(arguments[1], tuple):
        with open({log!r}, "a") as log:
            log.write("bound:" + str(arguments[1][0]) + "\\n")
    if event == "socket.getaddrinfo":
        with open({log!r}, "a") as log:
            log.write(str(arguments[0]) + "\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def finished(made_once: Callable[[str, Callable[[Path], None]], Path], prefect_home: Path) -> tuple[Workplace, Ended]:
    """The default run of the exercise, spied on, once for all tests that look at what it left."""

    def fill(folder: Path) -> None:
        workplace = workplace_in(folder)
        shutil.copytree(prefect_home, folder / "prefect")
        spy = folder / "spy"
        spy.mkdir()
        (spy / "sitecustomize.py").write_text(SPY.format(log=str(folder / "addresses.txt")))
        workplace.environment.pop("CI", None)  # would turn onnxruntime's telemetry off by itself
        path = os.pathsep.join((str(spy), str(ROOT)))
        ended = workplace.run("--json", PYTHONPATH=path, HOME=str(folder))
        (folder / "ended.json").write_text(json.dumps(vars(ended)))

    folder = made_once("trained by default", fill)
    return workplace_in(folder), Ended(**json.loads((folder / "ended.json").read_text()))


def flow_run(workplace: Workplace, ended: Ended) -> tuple[str, list[str], list[str]]:
    """State, names of the task runs in order, and artifacts of a flow run, from Prefect's own database."""
    flow_run_id = ended.result["flow_run_id"]
    with sqlite3.connect(workplace.folder / "prefect" / "prefect.db") as database:
        (state,) = database.execute("select state_type from flow_run where id = ?", (flow_run_id,)).fetchone()
        tasks = database.execute(
            "select name from task_run where flow_run_id = ? order by start_time", (flow_run_id,)
        ).fetchall()
        artifacts = database.execute("select data from artifact where flow_run_id = ?", (flow_run_id,)).fetchall()
    return state, [name.rsplit("-", 1)[0] for (name,) in tasks], [json.loads(data) for (data,) in artifacts]


def test_the_default_run_trains_verifies_and_registers(finished: tuple[Workplace, Ended]) -> None:
    _, ended = finished
    result = ended.result
    assert ended.code == 0, ended.err
    assert (result["flow"], result["status"], result["epochs"]) == ("train", "registered", 1000)
    # The published cell of the exercise: SGD, 1,000 epochs.
    assert result["parameters"]["w"] == pytest.approx(1.9996239, abs=1e-7)
    assert result["parameters"]["b"] == pytest.approx(0.0008549, abs=1e-7)
    assert result["predictions"] == [{"x": [4.0], "y": [pytest.approx(7.9993505, abs=5e-7)]}]
    assert result["parity"]["verdict"] == "passed"
    assert result["model"]["alias"] == "champion"
    assert len(ended.out.splitlines()) == 1, "all but the result goes to standard error"
    assert "Traceback" not in ended.err
    assert "WARNING" not in ended.err.upper()


def test_readme_shows_what_it_prints(finished: tuple[Workplace, Ended]) -> None:
    """But for what another run, another folder or another minute gives."""
    (block,) = re.findall(r"The default run prints:\n\n((?:    .*\n)+)", (ROOT / "README.md").read_text())
    shown, printed = (
        dict(re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines() if "  " in line.strip())
        for text in (block, finished[1].err)
    )
    assert list(shown) == list(printed)
    for name in ("seconds", "report", "runs"):
        del shown[name], printed[name]
    assert shown == printed


def test_the_registered_file_alone_predicts(finished: tuple[Workplace, Ended]) -> None:
    _, ended = finished
    session = onnxruntime.InferenceSession(ended.result["model"]["path"])
    (prediction,) = session.run(None, {"x": np.array([[4.0]], dtype=np.float32)})
    assert prediction.tolist() == [ended.result["predictions"][0]["y"]]


def test_nothing_that_it_wrote_is_a_pickle(finished: tuple[Workplace, Ended]) -> None:
    folder = finished[0].folder
    assert {"mlflow.db", "mlruns"} <= {path.name for path in folder.iterdir()}
    assert pickles_in(folder) == []
    kept = [path for path in (folder / "prefect").rglob("storage/*") if path.is_file()]
    assert not kept, "no result of a step is kept"


def test_the_run_records_everything(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    client, result = workplace.client, ended.result
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "train"
    assert run.data.params["optimizer"] == "SGD"
    assert run.data.params["lr"] == "0.01"
    tags = run.data.tags
    assert tags["flow_run_id"] == result["flow_run_id"]
    assert (tags["outcome"], tags["parity"]) == ("completed", "passed")
    assert tags["model.sha256"] == result["model"]["sha256"]
    for name in ("loss", "w", "b"):
        points = client.get_metric_history(run.info.run_id, name)
        assert len(points) == 500
        assert (points[0].step, points[-1].step) == (0, 1000)
    history = Path(client.download_artifacts(run.info.run_id, "history.parquet"))
    table = pyarrow.parquet.read_table(history)
    assert table.num_rows == 1001
    assert table["w"][-1].as_py() == result["parameters"]["w"]
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {
        "fit.png",
        "history.parquet",
        "golden.parquet",
        "model.onnx",
        "parity.html",
        "parity.json",
        "report.html",
    }
    assert run.inputs.dataset_inputs[0].dataset.name == "line"
    assert not client.search_runs(["0"])


def test_each_search_line_of_the_documents_finds_it(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    client, result = workplace.client, ended.result
    run = client.get_run(result["run_id"])
    known = {"FLOW_RUN_ID": result["flow_run_id"], "DIGEST": run.inputs.dataset_inputs[0].dataset.digest}
    lines = search_lines("train")
    assert len(lines) == 7
    for line in lines:
        for word, value in known.items():
            line = line.replace(word, value)
        found = client.search_runs([run.info.experiment_id], line)
        assert [one.info.run_id for one in found] == [result["run_id"]], line
        contrary = line.replace("= '", "= 'other ")
        assert not client.search_runs([run.info.experiment_id], contrary), contrary


def test_whoever_finds_it_is_told_what_to_open(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    client, result = workplace.client, ended.result
    run = client.get_run(result["run_id"])
    note = run.data.tags["mlflow.note.content"]
    assert "report.html" in note
    assert f"({run.data.tags['flow_run_url']})" in note
    version = client.get_model_version(result["model"]["name"], result["model"]["version"])
    links = re.findall(r"\((\S+)\)", version.description)
    kept = {artifact.path for artifact in client.list_artifacts(result["run_id"])}
    assert [link.partition(f"/runs/{result['run_id']}/artifacts/")[2] for link in links] == [
        "report.html",
        "parity.html",
    ]
    assert {"report.html", "parity.html"} <= kept


def test_the_file_says_where_it_comes_from(finished: tuple[Workplace, Ended]) -> None:
    _, ended = finished
    session = onnxruntime.InferenceSession(ended.result["model"]["path"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["mlflow_run_id"] == ended.result["run_id"]
    assert about["flow_run_id"] == ended.result["flow_run_id"]
    assert json.loads(about["features"]) == ["x"]
    assert about["optimizer"] == "SGD"


def test_prefect_shows_the_steps_in_order_and_the_result(finished: tuple[Workplace, Ended]) -> None:
    state, steps, artifacts = flow_run(*finished)
    assert state == "COMPLETED"
    assert steps == STEPS
    (page,) = artifacts
    assert finished[1].result["run_id"] in page
    assert "data:image/png;base64," in page
    assert "| parity | passed" in page


def test_a_fit_that_diverges_exits_1_and_says_so(workplace: Workplace) -> None:
    ended = workplace.run("--lr", "0.2", "--json")
    assert ended.code == 1
    assert ended.result["status"] == "diverged"
    assert ended.result["model"] is None
    run = workplace.client.get_run(ended.result["run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("FAILED", "diverged")
    assert 1 <= len(workplace.client.get_metric_history(run.info.run_id, "loss")) < 100
    assert not workplace.client.search_registered_models()
    assert flow_run(workplace, ended)[0] == "FAILED"
    assert "try a smaller --lr" in ended.err


@pytest.mark.usefixtures("shared_server")
def test_columns_that_the_dtype_cannot_resolve_are_told_everywhere(workplace: Workplace) -> None:
    """And a line through the origin goes all the way, from start values."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 50))
    table = pa.table({"a": a, "b": a + 1e-5 * b, "y": 2 * a + 1})
    pa.csv.write_csv(table, workplace.folder / "rows.csv")
    line = ("--data", "rows.csv", "--target", "y", "--no-intercept", "--no-register", "--json", "--epochs", "50")
    plain = workplace.run(*line, "--start", "weight=0,0.5")
    assert plain.code == 0, plain.err
    (warning,) = plain.result["warnings"]
    assert "--decorrelate" in warning
    assert re.search(r"warning\s+the fitted columns have condition number", plain.err)
    run = workplace.client.get_run(plain.result["run_id"]).data
    assert run.tags["warning"] == warning
    recorded = {name: run.params[name] for name in ("intercept", "decorrelate", "start")}
    assert recorded == {"intercept": "False", "decorrelate": "False", "start": "weight=0,0.5"}


@pytest.mark.usefixtures("shared_server")
def test_the_same_request_gives_the_same_bits(workplace: Workplace) -> None:
    """Weights, curve and model file, but for the ids of the run; and a tie leaves the champion in its place."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    columns = {"first": x[:, 0], "second": x[:, 1] > 0, "result": x.sum(axis=1), "name": ["Ulm"] * 60}
    pyarrow.csv.write_csv(pa.table(columns), workplace.folder / "some rows.csv")
    request = [
        "--data", "some rows.csv", "--target", "result", "--features", "first,second", "--model", "mlp", "--batch-size",
        "16", "--epochs", "20", "--optimizer", "adam", "--json",
    ]  # fmt: skip
    first, second = (workplace.run(*request) for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err
    models = [onnx.load(ended.result["model"]["path"]) for ended in (first, second)]
    assert models[0].metadata_props != models[1].metadata_props
    for model in models:
        del model.metadata_props[:]
    assert models[0].SerializeToString(deterministic=True) == models[1].SerializeToString(deterministic=True)
    histories = [
        pyarrow.parquet.read_table(workplace.client.download_artifacts(ended.result["run_id"], "history.parquet"))
        for ended in (first, second)
    ]
    assert histories[0].equals(histories[1])
    assert first.result["held_out"]["r2"] > 0
    assert (first.result["model"]["alias"], second.result["model"]["alias"]) == ("champion", "challenger")
    assert first.result["model"]["name"] == "some-rows-mlp"


def test_a_wrong_request_exits_2_with_one_line_and_creates_nothing(empty_workplace: Workplace) -> None:
    """One that is found late, when the model is there; others, of every flow: tests/flows/test_requests.py."""
    ended = empty_workplace.run("--optimizer", "SparseAdam")
    assert ended.code == 2
    assert "SparseAdam cannot train this model" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""
    left = [path for path in empty_workplace.folder.iterdir() if path.name != "prefect"]
    assert left == []


def test_two_first_runs_at_the_same_time_on_an_empty_folder(empty_workplace: Workplace) -> None:
    processes = [empty_workplace.start("--json", "--seed", str(seed)) for seed in (0, 1)]
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        ended.append(Ended(process.returncode, out, err))
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    versions = {one.result["model"]["version"] for one in ended}
    assert versions == {"1", "2"}


def test_a_server_that_is_there_is_used_waited_for_while_it_restarts_and_left_alone(workplace: Workplace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    log = (workplace.folder / "server.log").open("w")

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"],
            env=workplace.environment | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_UI_ENABLED": "0"},
            stdout=log,
            stderr=log,
        )

    server = start()
    try:
        _wait_until_it_listens(port, server)
        process = workplace.start("--json", PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
        assert process.stderr is not None
        _wait_until_a_run_is_open(workplace, process)
        server.terminate()
        server.wait(timeout=30)
        said = next(line for line in process.stderr if "waiting for it" in line)
        assert f"http://127.0.0.1:{port}/api does not answer" in said
        (run,) = workplace.client.search_runs([workplace.client.get_experiment_by_name("train").experiment_id])
        assert run.info.status == "FINISHED", "the work goes on, and only the telling waits"
        server = start()
        out, err = process.communicate(timeout=SECONDS_TO_FINISH)
        ended = Ended(process.returncode, out, err)
        assert ended.code == 0, ended.err
        assert ended.result["status"] == "registered"
        assert "Prefect's server answers again" in ended.err
        assert server.poll() is None
        tags = workplace.client.get_run(ended.result["run_id"]).data.tags
        assert tags["flow_run_url"].startswith(f"http://127.0.0.1:{port}/")
        state, steps, artifacts = flow_run(workplace, ended)
        assert (state, len(artifacts)) == ("COMPLETED", 1)
        assert set(steps) == set(STEPS)
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def test_a_server_of_our_own_that_is_killed_takes_no_work_along(workplace: Workplace) -> None:
    """It is not waited for: nobody will start it again."""
    process = workplace.start("--json")
    _wait_until_a_run_is_open(workplace, process)
    (server,) = (one for one in psutil.Process(process.pid).children() if "tasks.prefect_server" in one.cmdline())
    server.kill()
    out, err = process.communicate(timeout=SECONDS_TO_FINISH)
    ended = Ended(process.returncode, out, err)
    assert ended.code == 0, ended.err
    assert ended.result["status"] == "registered"
    (warning,) = [line for line in ended.err.splitlines() if line.startswith("warning")]
    assert "was not told that the run ended as completed; the next start of a flow puts that right" in warning
    assert "Traceback" not in ended.err
    assert workplace.client.get_run(ended.result["run_id"]).info.status == "FINISHED"
    assert flow_states(workplace)[ended.result["flow_run_id"]] == "RUNNING"


def _wait_until_a_run_is_open(workplace: Workplace, process: "subprocess.Popen[str]") -> None:
    database = workplace.folder / "mlflow.db"
    while process.poll() is None:
        with (
            contextlib.suppress(sqlite3.OperationalError),
            sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as one,
        ):
            if one.execute("select count(*) from params").fetchone()[0]:
                return
        time.sleep(0.05)
    raise AssertionError(f"the flow ended with {process.returncode}")


def _wait_until_it_listens(port: int, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        connections = psutil.Process(server.pid).net_connections()
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return
    raise AssertionError(f"the server ended with {server.returncode}")


def test_what_a_kill_leaves_is_closed_by_the_next_start_of_any_flow(workplace: Workplace) -> None:
    """Nothing can be written after SIGKILL. Other signals, and other moments: tests/faults."""
    process = workplace.start("--epochs", "1000000000")
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("training: epoch"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "a Prefect server of its own"
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=SECONDS_TO_BE_GONE)
    assert alive == []
    (run,) = workplace.client.search_runs([workplace.client.get_experiment_by_name("train").experiment_id])
    flow_run_id = run.data.tags["flow_run_id"]
    assert (run.info.status, flow_states(workplace)[flow_run_id]) == ("RUNNING", "RUNNING")
    # A run that was killed before it stood in MLflow, and one whose end Prefect was not told.
    ended = workplace.client.create_run(run.info.experiment_id, tags={"flow_run_id": str(uuid.uuid4())})
    workplace.client.set_terminated(ended.info.run_id, "FINISHED")
    copies = {str(uuid.uuid4()): "CRASHED", ended.data.tags["flow_run_id"]: "COMPLETED"}
    copy_flow_run(workplace, flow_run_id, list(copies))
    second = workplace.run("--epochs", "1", "--no-register", "--json")
    assert second.code == 0, second.err
    assert workplace.client.get_run(run.info.run_id).info.status == "KILLED"
    (told,) = [line for line in second.err.splitlines() if line.startswith("closed, because its process was gone")]
    assert all(one in told for one in (run.info.run_id, flow_run_id, *copies))
    states = flow_states(workplace)
    assert {one: states[one] for one in copies} == copies
    assert states[flow_run_id] == "CRASHED"
    assert states[second.result["flow_run_id"]] == "COMPLETED"


def flow_states(workplace: Workplace) -> dict[str, str]:
    """The state of each flow run, from Prefect's own database."""
    with sqlite3.connect(workplace.folder / "prefect" / "prefect.db") as database:
        return dict(database.execute("select id, state_type from flow_run").fetchall())


def copy_flow_run(workplace: Workplace, flow_run_id: str, ids: list[str]) -> None:
    """Write a flow run down again under other ids."""
    with sqlite3.connect(workplace.folder / "prefect" / "prefect.db") as database:
        generated = {"id", "idempotency_key", "state_id"}
        kept = [row[1] for row in database.execute("pragma table_info(flow_run)") if row[1] not in generated]
        for one in ids:
            columns = ", ".join(f'"{name}"' for name in kept)
            database.execute(
                f"insert into flow_run (id, {columns}) select ?, {columns} from flow_run where id = ?",
                (one, flow_run_id),
            )


FAULTY = """
import torch

class Faulty(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, x):
        if len(x) == 3 and self.training:
            raise RuntimeError("the third row is one too many")
        return super().forward(x)
"""


def test_no_process_is_left_after_an_exception(workplace: Workplace) -> None:
    """The fault is told in one line, and the run is FAILED."""
    (workplace.folder / "nets.py").write_text(FAULTY)
    process = workplace.start("--model", "nets:Faulty", "--json")
    children: set[psutil.Process] = set()
    while process.poll() is None:
        children |= set(psutil.Process(process.pid).children(recursive=True))
    out, err = process.communicate()
    ended = Ended(process.returncode, out, err)
    assert ended.code == 1
    assert "the third row is one too many" in ended.err
    assert "Traceback" not in ended.err
    assert workplace.client.get_run(ended.result["run_id"]).info.status == "FAILED"
    assert children, "a Prefect server of its own"
    _, alive = psutil.wait_procs(list(children), timeout=SECONDS_TO_BE_GONE)
    assert alive == []


COVERED = """
import signal
import torch

class Covered(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, x):
        if (x == 4).any() and not self.training:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                raise ValueError("it was not open")
        return super().forward(x)
"""


@pytest.mark.usefixtures("shared_server")
def test_an_interrupt_that_an_exception_covers_is_one(workplace: Workplace) -> None:
    """Prefect's own engine covers it so where it comes before a task's run has begun."""
    (workplace.folder / "nets.py").write_text(COVERED)
    ended = workplace.run("--model", "nets:Covered", "--json")
    assert ended.code == 143, ended.err
    run = workplace.client.get_run(ended.result["run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")


def test_no_connection_leaves_the_machine(finished: tuple[Workplace, Ended]) -> None:
    """Neither of the flow's process nor of those that it starts.

    The spy cannot see onnxruntime's native code; its telemetry would begin with a device id on the disk.
    """
    workplace, ended = finished
    assert ended.code == 0, ended.err
    addresses = set((workplace.folder / "addresses.txt").read_text().split())
    assert addresses, "the flow talks to its own server"
    assert addresses <= {"127.0.0.1", "localhost", "::1", "None", "bound:127.0.0.1", "bound:::1"}
    assert "bound:127.0.0.1" in addresses, "and that server listens there, as everything else that listens"
    assert not list(workplace.folder.rglob("deviceid"))
