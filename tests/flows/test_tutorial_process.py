"""The tutorial as a person runs it."""

import pytest
from pickles import pickles_in
from workplaces import Workplace

from fourfold.configuration import TrainConfig
from fourfold.fitting import fit
from tasks.build_model import build
from tasks.make_data import load
from tasks.train import fit_config


@pytest.mark.usefixtures("shared_server")
def test_it_runs_the_levels_and_tells_their_results(workplace: Workplace) -> None:
    ended = workplace.run("--steps", "30", "--dtype", "float64", "--json", flow="tutorial")
    assert ended.code == 0, ended.err
    result = ended.result
    assert result["status"] == "completed"
    assert [level["level"] for level in result["levels"]] == list(range(1, 9))
    gaps = {level["level"]: level["difference_from_level_1"] for level in result["levels"]}
    assert [number for number, gap in gaps.items() if gap is not None and gap <= 1e-12] == [2, 3, 5, 7]
    assert [level["parity"]["verdict"] for level in result["levels"][4:]] == ["passed"] * 4
    assert "random in evaluation mode" in result["refused_while_random"]
    assert "8 control flow" in ended.err
    children = workplace.client.search_runs(
        [workplace.client.get_run(result["run_id"]).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{result['run_id']}'",
    )
    outcomes = sorted((run.info.run_name or "", run.info.status) for run in children)
    assert all("part of a tutorial" in run.data.tags["mlflow.note.content"].lower() for run in children)
    assert [status for name, status in outcomes if name.startswith("level 8 while")] == ["FINISHED"]
    assert [status for _, status in outcomes] == ["FINISHED"] * 9
    kept = {artifact.path for artifact in workplace.client.list_artifacts(result["run_id"])}
    assert kept == {"levels.png"}
    assert pickles_in(workplace.folder) == []


@pytest.mark.usefixtures("shared_server")
def test_a_network_that_draws_while_it_learns_gives_the_same_bits_in_another_process(workplace: Workplace) -> None:
    ended = workplace.run(
        *("--data", "sine", "--model", "dynamic", "--lr", "1e-8", "--epochs", "300", "--no-register", "--json")
    )
    config = TrainConfig(data="sine", model="dynamic", lr=1e-8, epochs=300)
    built = build(config, load(config))
    here = built.parameters(fit(built.core, built.x, built.y, fit_config(config)).history)
    assert ended.result["parameters"] == here
