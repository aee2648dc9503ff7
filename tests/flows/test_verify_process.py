"""`python flows/verify_flow.py` as a user runs it: a process, without torch, with its exit code."""

import shutil
from pathlib import Path

import pytest
from workplaces import Ended, Workplace, workplace_in

WITHOUT_TORCH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> tuple[Workplace, Ended]:
    """A registered model of two columns and two targets, once for all tests that prove it again."""
    workplace = workplace_in(tmp_path_factory.mktemp("trained"))
    shutil.copytree(prefect_home, workplace.folder / "prefect")
    rows = ["first,second,sum,difference", *(f"{i},{i * i % 7},{i + i * i % 7},{i - i * i % 7}" for i in range(40))]
    (workplace.folder / "rows.csv").write_text("\n".join(rows))
    (workplace.folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    request = ["--data", "rows.csv", "--target", "sum,difference", "--model", "mlp", "--epochs", "20", "--json"]
    ended = workplace.run(*request)
    assert ended.code == 0, ended.err
    return workplace, ended


@pytest.mark.parametrize("address", ["models:/rows-mlp@champion", "models:/rows-mlp/1", "the run", "the folder"])
def test_what_was_registered_is_proved_again_without_torch(address: str, trained: tuple[Workplace, Ended]) -> None:
    workplace, training = trained
    result = training.result
    path = Path(result["model"]["path"])
    address = {"the run": result["run_id"], "the folder": str(path.parent)}.get(address, address)
    ended = workplace.run("--model", address, "--json", flow="verify", PYTHONPATH=str(workplace.folder))
    assert ended.code == 0, ended.err
    assert (ended.result["flow"], ended.result["status"]) == ("verify", "verified")
    assert ended.result["model"]["sha256"] == result["model"]["sha256"]
    assert ended.result["parity"]["verdict"] == "passed"
    run = workplace.client.get_run(ended.result["run_id"])
    assert (run.info.status, run.data.tags["parity"]) == ("FINISHED", "passed")
    assert run.data.tags["flow_run_id"] == ended.result["flow_run_id"]


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "--model"), (["--model", "models:/none@champion"], "none"), (["--model", "nowhere"], "no such folder")],
)
def test_a_wrong_address_exits_2_with_one_line_and_creates_nothing(
    empty_workplace: Workplace, arguments: list[str], said: str
) -> None:
    ended = empty_workplace.run(*arguments, flow="verify")
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert [path for path in empty_workplace.folder.iterdir() if path.name != "prefect"] == []
