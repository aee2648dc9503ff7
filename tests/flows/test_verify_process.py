"""`python flows/verify_flow.py` as a user runs it: a process, without torch, with its exit code."""

import os
import shutil
from pathlib import Path

import pytest
from pickles import pickles_in
from workplaces import ROOT, WITHOUT_TORCH, Ended, Workplace, workplace_in


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: str, empty_database: Path
) -> tuple[Workplace, Ended]:
    """A registered model of two columns and two targets, once for all tests that prove it again."""
    workplace = workplace_in(tmp_path_factory.mktemp("trained"))
    shutil.copy(empty_database, workplace.folder / "mlflow.db")
    workplace.environment["PREFECT_API_URL"] = prefect_server
    rows = ["first,second,sum,difference", *(f"{i},{i * i % 7},{i + i * i % 7},{i - i * i % 7}" for i in range(40))]
    (workplace.folder / "rows.csv").write_text("\n".join(rows))
    (workplace.folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    request = ["--data", "rows.csv", "--target", "sum,difference", "--model", "mlp", "--epochs", "20", "--json"]
    ended = workplace.run(*request)
    assert ended.code == 0, ended.err
    return workplace, ended


def without_torch(workplace: Workplace) -> str:
    """The path under which that folder's `sitecustomize` is found, and this very code."""
    return os.pathsep.join((str(workplace.folder), str(ROOT)))


# The other kinds of address: tests/tasks/test_find_model.py.
@pytest.mark.parametrize("address", ["models:/rows-mlp@champion", "the folder"])
def test_what_was_registered_is_proved_again_without_torch(address: str, trained: tuple[Workplace, Ended]) -> None:
    workplace, training = trained
    result = training.result
    path = Path(result["model"]["path"])
    address = {"the folder": str(path.parent)}.get(address, address)
    ended = workplace.run("--model", address, "--json", flow="verify", PYTHONPATH=without_torch(workplace))
    assert ended.code == 0, ended.err
    assert (ended.result["flow"], ended.result["status"]) == ("verify", "verified")
    assert ended.result["model"]["sha256"] == result["model"]["sha256"]
    assert ended.result["parity"]["verdict"] == "passed"
    run = workplace.client.get_run(ended.result["run_id"])
    assert (run.info.status, run.data.tags["parity"]) == ("FINISHED", "passed")
    assert run.data.tags["flow_run_id"] == ended.result["flow_run_id"]
    assert pickles_in(workplace.folder) == []


def test_a_file_that_was_changed_since_is_rejected(trained: tuple[Workplace, Ended], tmp_path: Path) -> None:
    workplace, training = trained
    folder = tmp_path / "model"
    shutil.copytree(Path(training.result["model"]["path"]).parent, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[content.rindex(b"x_mean") + 16] ^= 1
    (folder / "model.onnx").write_bytes(content)
    ended = workplace.run("--model", str(folder), "--json", flow="verify")
    assert ended.code == 1
    assert ended.result["status"] == "rejected"
    assert "is not what was proved" in ended.result["reason"]
    assert len([line for line in ended.err.splitlines() if line.startswith("verify:")]) == 1
    assert "Traceback" not in ended.err
    assert workplace.client.get_run(ended.result["run_id"]).info.status == "FAILED"


def test_a_version_is_promoted_if_it_passes_and_the_way_back_is_the_same(trained: tuple[Workplace, Ended]) -> None:
    """All without torch but the training of a second version, which is worse: it has had one epoch."""
    workplace, _ = trained

    def aliases() -> dict[str, str]:
        named = workplace.client.get_registered_model("rows-mlp").aliases
        return {alias: str(version) for alias, version in named.items()}

    def promote(*arguments: str) -> Ended:
        return workplace.run("--promote", *arguments, "--json", flow="verify", PYTHONPATH=without_torch(workplace))

    request = ["--data", "rows.csv", "--target", "sum,difference", "--model", "mlp", "--epochs", "1", "--json"]
    second = workplace.run(*request)
    assert second.code == 0, second.err
    assert aliases() == {"champion": "1", "challenger": "2"}

    path = Path(second.result["model"]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused = promote("models:/rows-mlp/2")
    assert (refused.code, refused.result["status"], refused.result["promotion"]) == (1, "rejected", None)
    assert aliases() == {"champion": "1", "challenger": "2"}
    path.write_bytes(content)

    promoted = promote("models:/rows-mlp/2")
    assert promoted.code == 0, promoted.err
    assert (promoted.result["status"], promoted.result["parity"]["verdict"]) == ("promoted", "passed")
    told = promoted.result["promotion"]
    assert (told["model"], told["from"], told["to"]) == ("rows-mlp", "1", "2")
    assert "from version 1, now challenger, to version 2 of rows-mlp" in promoted.err
    assert aliases() == {"champion": "2", "challenger": "1"}
    facts = {"time": told["time"], "run_id": promoted.result["run_id"]}
    assert (
        facts.items()
        <= {
            key.removeprefix("promoted."): value
            for key, value in workplace.client.get_model_version("rows-mlp", "2").tags.items()
        }.items()
    )
    assert workplace.client.get_run(promoted.result["run_id"]).data.tags["promotion.time"] == told["time"]

    back = promote("1", "--model", "models:/rows-mlp/2")
    assert back.code == 0, back.err
    assert aliases() == {"champion": "1", "challenger": "2"}


def test_a_version_that_is_not_there_or_was_never_proved_cannot_be_promoted(
    trained: tuple[Workplace, Ended], tmp_path: Path
) -> None:
    workplace, _ = trained
    client = workplace.client
    inside = workplace.folder / "mlruns" / "foreign"
    inside.mkdir()

    def runs() -> int:
        return len(client.search_runs([one.experiment_id for one in client.search_experiments()]))

    client.create_registered_model("foreign")
    for folder in (inside, tmp_path):
        (folder / "model.onnx").write_bytes(b"whatever")
        client.create_model_version("foreign", str(folder))
    before = runs()
    for address, said in (
        ("rows-mlp/99", "version=99"),
        ("foreign/1", "no golden predictions"),
    ):
        ended = workplace.run("--promote", f"models:/{address}", flow="verify")
        assert (ended.code, len(ended.err.splitlines())) == (2, 1)
        assert ended.err.startswith(f"verify: models:/{address}")
        assert said in ended.err
    assert runs() == before
    assert client.get_registered_model("foreign").aliases == {}
