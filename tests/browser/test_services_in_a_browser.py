"""The pages of MLflow and Prefect show a run, and lead from one to the other."""

import pytest
from visiting import Visited

NAME = "SGD lr=0.01 line-linear"


def test_the_list_of_runs_has_names_and_the_columns_that_matter(visited: Visited) -> None:
    shown = visited.seen["runs"].splitlines()
    for text in (NAME, "optimizer", "SGD", "lr", "0.01", "final_loss", "parity", "passed", "model.alias", "champion"):
        assert text in shown, text


def test_the_curve_of_the_loss_is_drawn(visited: Visited) -> None:
    curve = visited.seen["curve"]
    assert curve["points"] > 300
    assert curve["drawn"] > 100
    assert curve["first"] > 10
    assert curve["last"] == pytest.approx(visited.results["train"]["loss"], rel=1e-5)


def test_the_pages_of_a_run_open_among_its_artifacts(visited: Visited) -> None:
    assert visited.seen["artifacts"] == {
        "report.html": {"heading": NAME, "plots": 4},
        "parity.html": {"heading": "Does onnxruntime predict what torch predicts?", "plots": 0},
        "comparison.html": {"heading": "SGD, Adam: houses-linear", "plots": 4},
    }


def test_mlflow_leads_to_the_flow_run_and_prefect_back(visited: Visited) -> None:
    run = visited.results["train"]
    shown = visited.seen["flow run"].splitlines()
    assert {NAME, "Completed"} <= set(shown)
    links = visited.seen["links"]
    assert links["The run in MLflow"].endswith(f"/runs/{run['run_id']}")
    assert links["The report"].endswith(f"/runs/{run['run_id']}/artifacts/report.html")
    back = visited.seen["back"].splitlines()
    assert {NAME, run["run_id"]} <= set(back)
