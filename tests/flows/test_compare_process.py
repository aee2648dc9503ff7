"""`python flows/compare_flow.py` as a user runs it: a process, its workers, its runs, its page and its end."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from mlflow.entities import Run
from pickles import pickles_in
from workplaces import ROOT, Ended, Workplace, search_lines, workplace_in

OPTIMIZERS = ("SGD", "LBFGS", "ASGD")
SMALL = ("--optimizers", ",".join(OPTIMIZERS), "--budget", "20", "--learning-rates", "3", "--seeds", "3")
SECONDS_TO_BE_GONE = 10
SECONDS_TO_COMPARE = 240  # controls, and three winners through the gate, on a machine that may be busy
SECONDS_TO_BEGIN = 90
SECONDS_OF_A_WORKER_THAT_TRAINS = 3.0


@pytest.fixture(scope="module")
def finished(made_once: Callable[[str, Callable[[Path], None]], Path], prefect_home: Path) -> tuple[Workplace, Ended]:
    """A small comparison on the line, with controls and registered winners, for all tests that look at it."""

    def fill(folder: Path) -> None:
        workplace = workplace_in(folder)
        shutil.copytree(prefect_home, folder / "prefect")
        request = (*SMALL, "--controls", "--register", "--workers", "1", "--json")
        with workplace.start(*request, flow="compare") as process:
            out, err = process.communicate(timeout=SECONDS_TO_COMPARE)
        ended = Ended(process.returncode, out, err)
        assert ended.code == 0, ended.err
        (folder / "ended.json").write_text(json.dumps(vars(ended)))

    folder = made_once("compared", fill)
    return workplace_in(folder), Ended(**json.loads((folder / "ended.json").read_text()))


def below(workplace: Workplace, run_id: str) -> list[Run]:
    """The runs that stand below one."""
    experiment = workplace.client.get_run(run_id).info.experiment_id
    return list(workplace.client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'"))


def artifacts(workplace: Workplace, run_id: str) -> set[str]:
    return {artifact.path for artifact in workplace.client.list_artifacts(run_id)}


def table(workplace: Workplace, run_id: str, name: str) -> pa.Table:
    return pyarrow.parquet.read_table(workplace.client.download_artifacts(run_id, name))


def test_each_search_line_of_the_documents_finds_it_or_what_is_below_it(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    run_id = ended.result["run_id"]
    experiment = workplace.client.get_run(run_id).info.experiment_id
    itself, winners = (
        {run.info.run_id for run in workplace.client.search_runs([experiment], line.replace("RUN_ID", run_id))}
        for line in search_lines("compare")
    )
    assert itself == {run_id}
    assert len(winners) == len(OPTIMIZERS)
    assert run_id not in winners


def test_the_last_line_is_the_result(finished: tuple[Workplace, Ended]) -> None:
    result = finished[1].result
    assert (result["flow"], result["status"], result["reason"]) == ("compare", "compared", None)
    assert (result["budget"], result["learning_rates"], result["seeds"]) == (20, 3, 3)
    assert result["problem"]["data"] == "line"
    assert {one["optimizer"] for one in result["results"]} == set(OPTIMIZERS)
    assert len(finished[1].out.splitlines()) == 1, "all but the result goes to standard error"
    for one in result["results"]:
        assert math.isfinite(one["tuned"]["loss"]["median"])
        assert set(one["tuned"]["parameters"]) == {"w", "b"}
        assert one["tuned"]["parity"] == "passed"
    json.loads(finished[1].out.splitlines()[-1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_person_sees_the_tables_and_no_fault(finished: tuple[Workplace, Ended]) -> None:
    err = finished[1].err
    for text in ("rank", "optimizer", "best lr", *OPTIMIZERS, "compared", "controls"):
        assert text in err
    for text in ("Traceback", "WARNING", "Warning", "Error"):
        assert text not in err


def test_one_run_stands_for_the_comparison(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    client, result = workplace.client, ended.result
    run = client.get_run(result["run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "completed")
    assert client.get_experiment(run.info.experiment_id).name == "compare"
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["flow_run_id"] == result["flow_run_id"]
    assert run.data.params["budget"] == "20"
    assert artifacts(workplace, result["run_id"]) == {"comparison.parquet", "comparison.png", "comparison.html"}
    assert run.inputs.dataset_inputs[0].dataset.name == "line"
    everything = client.search_runs([run.info.experiment_id])
    assert len(everything) == 1 + len(OPTIMIZERS), "the comparison and its winners, no run besides"
    assert not client.search_runs(["0"])
    for one in result["results"]:
        assert run.data.metrics[f"{one['optimizer']}/loss"] == one["tuned"]["loss"]["median"]
        assert run.data.metrics[f"{one['optimizer']}/rank"] == one["rank"]


def test_nothing_that_it_wrote_is_a_pickle(finished: tuple[Workplace, Ended]) -> None:
    """Its processes hand each other pickles, through pipes that no one else can write to; none is ever a file."""
    assert pickles_in(finished[0].folder) == []


def test_the_table_has_a_row_for_every_training(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    rows = table(workplace, ended.result["run_id"], "comparison.parquet").to_pylist()
    for one in ended.result["results"]:
        own = [row for row in rows if row["optimizer"] == one["optimizer"]]
        rates = {row["lr"] for row in own}
        assert sorted((row["lr"], row["seed"]) for row in own) == sorted(itertools.product(rates, (0, 1, 2)))
        assert len({row["lr"] for row in own if row["on_grid"]}) == 3
        assert {one["default"]["lr"], one["same_lr"]["lr"], one["tuned"]["lr"]} <= rates
        tuned = [row for row in own if row["lr"] == one["tuned"]["lr"]]
        assert one["tuned"]["loss"]["median"] == np.median([row["loss"] for row in tuned])
        for row in own:
            assert (row["outcome"] == "completed") <= math.isfinite(row["loss"])
    controls = {row["optimizer"] for row in rows} - set(OPTIMIZERS)
    assert controls == {
        "control: SGD",
        "control: SGD again",
        "control: SGD momentum 0.5",
        "control: SGD momentum 0.9",
        "control: shuffle",
    }
    own, control = (
        [(row["lr"], row["seed"], row["loss"]) for row in rows if row["optimizer"] == name]
        for name in ("SGD", "control: SGD")
    )
    assert repr(own) == repr(control)


def test_each_winner_has_a_run_below_with_its_curve_and_its_verified_file(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    client, result = workplace.client, ended.result
    children = {run.info.run_id: run for run in below(workplace, result["run_id"])}
    assert set(children) == {one["tuned"]["run_id"] for one in result["results"]}
    assert len(children) == len(OPTIMIZERS)
    for one in result["results"]:
        run = children[one["tuned"]["run_id"]]
        assert (run.info.status, run.data.tags["parity"]) == ("FINISHED", "passed")
        assert run.data.params["optimizer"] == one["optimizer"]
        assert float(run.data.params["lr"]) == one["tuned"]["lr"]
        assert len(client.get_metric_history(run.info.run_id, "loss")) >= 2
        assert {
            "history.parquet",
            "model.onnx",
            "golden.parquet",
            "fit.png",
            "parity.html",
            "report.html",
        } <= artifacts(workplace, run.info.run_id)
        session = onnxruntime.InferenceSession(client.download_artifacts(run.info.run_id, "model.onnx"))
        (answer,) = session.run(None, {"x": np.array([[4.0]], dtype=np.float32)})
        assert [{"x": [4.0], "y": answer[0].tolist()}] == one["tuned"]["predictions"]


def test_a_winner_alone_is_bit_for_bit_the_member_in_the_table(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    rows = table(workplace, ended.result["run_id"], "comparison.parquet").to_pylist()
    for one in ended.result["results"]:
        (member,) = (
            row
            for row in rows
            if (row["optimizer"], row["lr"], row["seed"]) == (one["optimizer"], one["tuned"]["lr"], 0)
        )
        history = table(workplace, one["tuned"]["run_id"], "history.parquet")
        assert history["loss"][-1].as_py() == member["loss"]
        assert history["gradient_evaluations"][-1].as_py() == member["evaluations"]
        curve = workplace.client.get_metric_history(one["tuned"]["run_id"], "loss")
        assert curve[-1].value == member["loss"]
        w, b = history["w"][-1].as_py(), history["b"][-1].as_py()
        assert one["tuned"]["parameters"] == {"w": w, "b": b}
        assert member["distance_to_least_squares"] == pytest.approx(math.hypot(w - 2, b), rel=1e-9, abs=1e-12)
        assert one["tuned"]["difference_alone"] == 0


def test_the_winners_are_versions_and_the_best_is_champion(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    versions = workplace.client.search_model_versions("name = 'line-linear'")
    assert {version.run_id for version in versions} == {one["tuned"]["run_id"] for one in ended.result["results"]}
    assert {one["tuned"]["status"] for one in ended.result["results"]} == {"registered"}
    champion = workplace.client.get_model_version_by_alias("line-linear", "champion")
    errors = {
        version.version: abs(one["tuned"]["predictions"][0]["y"][0] - 8)
        for version in versions
        for one in ended.result["results"]
        if one["tuned"]["run_id"] == version.run_id
    }
    assert errors[champion.version] == min(errors.values()), "of a straight line, what is right at 4 is right"


def test_prefect_shows_the_steps_and_the_tables(finished: tuple[Workplace, Ended]) -> None:
    workplace, ended = finished
    flow_run_id = ended.result["flow_run_id"]
    with sqlite3.connect(workplace.folder / "prefect" / "prefect.db") as database:
        (state,) = database.execute("select state_type from flow_run where id = ?", (flow_run_id,)).fetchone()
        steps = database.execute("select name from task_run where flow_run_id = ?", (flow_run_id,)).fetchall()
        found = database.execute("select key, type, data from artifact where flow_run_id = ?", (flow_run_id,))
        shown = {key: (kind, json.loads(data)) for key, kind, data in found.fetchall()}
    assert state == "COMPLETED"
    names = [name.rsplit("-", 1)[0] for (name,) in steps]
    assert {"train all members", "keep the table", "keep the pictures"} <= set(names)
    assert names.count("verify with onnxruntime") == len(OPTIMIZERS)
    assert set(shown) == {"compare", "compare-ranking", "compare-winners"}
    kind, ranking = shown["compare-ranking"]
    rows = json.loads(ranking) if isinstance(ranking, str) else ranking
    assert kind == "table"
    assert [row["optimizer"] for row in rows] == [one["optimizer"] for one in ended.result["results"]]
    header = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    rank "))
    assert re.split(r"  +", header.strip()) == list(rows[0]), "README shows that table"
    assert shown["compare"][0] == "markdown"
    assert "data:image/png;base64," in shown["compare"][1]


OWN = """
import torch

class Dropped(torch.nn.Module):
    '''Random in training, so that it cannot be stacked.'''
    def __init__(self, in_features):
        super().__init__()
        self.line = torch.nn.Linear(in_features, 1)
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, x):
        return self.line(self.drop(x))
"""


@pytest.mark.usefixtures("shared_server")
def test_a_network_of_ones_own_on_a_file_is_compared_in_mini_batches(workplace: Workplace) -> None:
    """Its module lies in the working directory, where the workers must find it as well; columns are named as HTML."""
    (workplace.folder / "nets.py").write_text(OWN)
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = x @ [1.0, -2.0] + 5
    rows = np.column_stack([x, y])
    np.savetxt(workplace.folder / "in $_$.csv", rows, delimiter=",", header="<script>a</script>,<b>,price", comments="")
    ended = workplace.run(
        *("--data", "in $_$.csv", "--target", "price", "--model", "nets:Dropped", "--optimizers", "SGD,Adam"),
        *("--budget", "12", "--batch-size", "12", "--learning-rates", "2", "--seeds", "2", "--workers", "1"),
        *("--at", "1,2", "--at", "1,2", "--json"),
        flow="compare",
    )
    assert ended.code == 0, ended.err
    result = ended.result
    assert (result["problem"]["training_rows"], result["problem"]["validation_rows"]) == (36, 12)
    assert [one["stacked"] for one in result["results"]] == [False, False]
    assert [one["tuned"]["difference_alone"] for one in result["results"]] == [0, 0]
    assert {"comparison.png", "comparison.html"} <= artifacts(workplace, result["run_id"])


def _workers_that_train(owner: int) -> int:
    found = 0
    for child in psutil.Process(owner).children(recursive=True):
        try:
            line, seconds = " ".join(child.cmdline()), child.cpu_times().user
        except psutil.NoSuchProcess:
            continue
        found += "loky" in line and "resource_tracker" not in line and seconds > SECONDS_OF_A_WORKER_THAT_TRAINS
    return found


def test_ctrl_c_in_the_middle_ends_everything(workplace: Workplace) -> None:
    """As a terminal sends it: to all processes of the group."""
    request = ("--optimizers", "SGD,Adam", "--budget", "1000000", "--learning-rates", "3", "--workers", "1", "--json")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "flows" / "compare_flow.py"), *request],
        cwd=workplace.folder,
        env=workplace.environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    end = time.monotonic() + SECONDS_TO_BEGIN
    while not _workers_that_train(process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no worker trains"
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    _, alive = psutil.wait_procs(children, timeout=SECONDS_TO_BE_GONE)
    assert alive == []
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("compare:")] == ["compare: interrupted"]
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (result["flow"], result["results"]) == ("compare", [])
    run = workplace.client.get_run(result["run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")
