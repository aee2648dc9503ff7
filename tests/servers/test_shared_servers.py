"""Everything through an MLflow server and a Prefect server on PostgreSQL: what arrived is asked of the database."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from running import PASSWORD, Servers, servers, until, why_not
from workplaces import ROOT, SECONDS_TO_FINISH, Ended, Workplace, workplace_in

EIGHT = 8
NAME = "shared"
READY = 2  # as MLflow keeps a model's status
# Of the libraries, and none of them of a run: where fonts lie, and folders that stay empty.
OF_LIBRARIES = (".cache/matplotlib", ".config/matplotlib")


@pytest.fixture(scope="session")
def seen(made_once: Callable[[str, Callable[[Path], None]], Path]) -> dict[str, Any]:
    """What eight trainings at once left, during which the database was restarted, and the other flows after them."""
    if why_not():
        pytest.skip(why_not())
    seen: dict[str, Any] = json.loads((made_once("shared-servers", _use) / "seen.json").read_text())
    return seen


def _use(folder: Path) -> None:
    with servers(folder) as running:
        place = workplace_in(folder / "place")
        for name in ("place", "place/home", "place/tmp", "told"):
            (folder / name).mkdir()
        place.environment.update(
            HOME=str(place.folder / "home"),
            TMPDIR=str(place.folder / "tmp"),
            PREFECT_HOME=str(place.folder / "home" / ".prefect"),
            MLFLOW_TRACKING_URI=running.mlflow,
            PREFECT_API_URL=running.prefect,
            PYTHONPATH=str(ROOT),
        )
        code, err = _train_at_once(place, running, folder / "told")
        flows = _run_side_by_side(place, running)
        seen = {
            "at once": {"code": code, "err": err},
            "trainings": [
                {"out": (folder / f"told/{number}.out").read_text(), "err": (folder / f"told/{number}.err").read_text()}
                for number in range(EIGHT)
            ],
            "flows": {name: vars(ended) for name, ended in flows.items()},
            "left": sorted(
                str(path.relative_to(place.folder)) for path in place.folder.rglob("*") if not path.is_dir()
            ),
            "folders": sorted(path.name for path in (place.folder / "tmp").iterdir()),
            "checkpoints": sorted(path.name for path in (ROOT / "mlruns" / "checkpoints").glob("*")),
            "artifacts": sorted(
                str(path.relative_to(folder / "artifacts")) for path in (folder / "artifacts").rglob("*.*")
            ),
            **_rows(running),
        }
    (folder / "seen.json").write_text(json.dumps(seen, default=str))
    shutil.rmtree(folder / "artifacts")


def _train_at_once(place: Workplace, running: Servers, told: Path) -> tuple[int, str]:
    """Eight first runs on an empty store, and a restart of the database once all have begun."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("at_once.py")), str(EIGHT), NAME, str(told)],
        cwd=place.folder, env=place.environment, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        begun = "SELECT 1 FROM runs HAVING count(*) = 8"
        until(lambda: process.poll() is not None or running.postgres.query("mlflow", begun))
        running.postgres.stop()
        running.postgres.start()
        _, err = process.communicate(timeout=SECONDS_TO_FINISH)
    return process.returncode, err


def _run_side_by_side(place: Workplace, running: Servers) -> dict[str, Ended]:
    # Any of the eight may have come first and be champion: to be promoted, it has to be another.
    [[other]] = running.postgres.query(
        "mlflow",
        "SELECT min(version) FROM model_versions WHERE version NOT IN (SELECT version FROM registered_model_aliases)",
    )
    asked = {
        "compare": ("--optimizers", "SGD,Adam", "--budget", "20", "--seeds", "1", "--learning-rates", "2"),
        "predict": ("--model", f"models:/{NAME}@champion", "--at", "4"),
        "verify": ("--model", f"models:/{NAME}/{other}", "--promote", str(other)),
    }
    with ExitStack() as stack:
        processes = {name: stack.enter_context(place.start(*line, "--json", flow=name)) for name, line in asked.items()}
        answers = {name: process.communicate(timeout=SECONDS_TO_FINISH) for name, process in processes.items()}
    return {name: Ended(processes[name].returncode, *answer) for name, answer in answers.items()}


def _rows(running: Servers) -> dict[str, Any]:
    """What PostgreSQL holds, asked for without any library of those that wrote it."""
    statements = {
        "runs": (
            "mlflow",
            "SELECT run_uuid, experiments.name, status FROM runs JOIN experiments USING (experiment_id) ORDER BY 1",
        ),
        "tags": ("mlflow", "SELECT run_uuid, key, value FROM tags"),
        "points": ("mlflow", "SELECT run_uuid, count(*) FROM metrics WHERE key = 'loss' GROUP BY 1"),
        "versions": ("mlflow", "SELECT version, run_id, source FROM model_versions ORDER BY version"),
        "version_tags": ("mlflow", "SELECT version, key, value FROM model_version_tags"),
        "aliases": ("mlflow", "SELECT alias, version FROM registered_model_aliases"),
        "models": ("mlflow", "SELECT name, status FROM logged_models"),
        "flow_runs": (
            "prefect",
            "SELECT flow_run.id, flow.name, state_type FROM flow_run JOIN flow ON flow_id = flow.id",
        ),
        "pages": ("prefect", "SELECT flow_run_id, data FROM artifact"),
    }
    return {name: running.postgres.query(database, statement) for name, (database, statement) in statements.items()}


def results(seen: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(one["out"].splitlines()[-1]) for one in seen["trainings"]]


class TestEightAtOnce:
    def test_all_of_them_end_well_though_the_database_was_restarted(self, seen: dict[str, Any]) -> None:
        assert seen["at once"] == {"code": 0, "err": ""}
        assert [result["status"] for result in results(seen)] == ["registered"] * EIGHT
        assert not any("Traceback" in one["err"] for one in seen["trainings"])

    def test_no_run_point_version_or_state_is_lost_or_doubled(self, seen: dict[str, Any]) -> None:
        ids = {result["run_id"]: number for number, result in enumerate(results(seen))}
        assert [(name, status) for run, name, status in seen["runs"] if run in ids] == [("train", "FINISHED")] * EIGHT
        points = dict(seen["points"])
        assert {run: points[run] for run in ids} == {run: 20 * (number + 1) + 1 for run, number in ids.items()}
        assert [version for version, _, _ in seen["versions"]] == list(range(1, EIGHT + 1))
        assert {run for _, run, _ in seen["versions"]} == set(ids)
        assert seen["models"] == [[NAME, READY]] * EIGHT
        flow_runs = {result["flow_run_id"] for result in results(seen)}
        assert [state for one, _, state in seen["flow_runs"] if one in flow_runs] == ["COMPLETED"] * EIGHT

    def test_each_champion_was_judged_against_the_one_before_it(self, seen: dict[str, Any]) -> None:
        """In the order of the versions, as if one run had come after the other."""
        tags: dict[int, dict[str, str]] = {version: {} for version, _, _ in seen["versions"]}
        for version, key, value in seen["version_tags"]:
            tags[version][key] = value
        champion, lowest = None, float("inf")
        for version, of_version in sorted(tags.items()):
            assert of_version.get("champion_version") == champion
            assert "undecided" not in of_version
            if float(of_version["rmse"]) < lowest:
                champion, lowest = str(version), float(of_version["rmse"])
        best = [version for version, of_version in tags.items() if float(of_version["rmse"]) == lowest]
        assert champion == str(best[0])


class TestThrough:
    def test_compare_predict_and_verify_work_unchanged(self, seen: dict[str, Any]) -> None:
        flows = {name: Ended(**ended) for name, ended in seen["flows"].items()}
        assert {name: (ended.code, ended.result["status"]) for name, ended in flows.items()} == {
            "compare": (0, "compared"),
            "predict": (0, "predicted"),
            "verify": (0, "promoted"),
        }, flows

    def test_the_files_lie_with_the_server_and_are_told_by_address(self, seen: dict[str, Any]) -> None:
        for result in results(seen):
            assert result["model"]["path"] is None, "it was fetched to be proved, and went with the process"
            assert result["model"]["uri"] == f"models:/{NAME}/{result['model']['version']}"
        kept = [Path(path).name for path in seen["artifacts"]]
        for name in ("model.onnx", "golden.parquet", "parity.html"):
            assert kept.count(name) >= EIGHT, name
        assert "comparison.parquet" in kept
        assert all(source.startswith(("models:/", "mlflow-artifacts:/")) for _, _, source in seen["versions"])

    def test_run_and_flow_run_name_each_other(self, seen: dict[str, Any]) -> None:
        tags = {(run, key): value for run, key, value in seen["tags"]}
        pages = dict(seen["pages"])
        for result in results(seen):
            assert tags[result["run_id"], "flow_run_id"] == result["flow_run_id"]
            assert f"/runs/{result['run_id']}" in pages[result["flow_run_id"]]

    def test_nothing_is_written_on_this_machine(self, seen: dict[str, Any]) -> None:
        left = [path for path in seen["left"] if not path.startswith(tuple(f"home/{one}" for one in OF_LIBRARIES))]
        assert left == []
        assert not [name for name in seen["folders"] if "fourfold" in name or name.startswith("tmp")]
        assert not {run for run, _, _ in seen["runs"]} & set(seen["checkpoints"]), "those of a finished run are removed"

    def test_the_password_is_nowhere_to_be_read(self, seen: dict[str, Any]) -> None:
        assert PASSWORD not in json.dumps(seen)
