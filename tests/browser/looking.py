"""A visit to the pages of both services, by whoever looks for a run that was just made."""

import json
import urllib.request
from typing import Any

from browsing import Browser
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium.webdriver.common.by import By
from visiting import Kept

from tasks.run_list import list_address

# The curve of a metric, as the page that draws all of them holds it.
CURVE = """
const card = (plot) => plot.parentElement.parentElement.parentElement.textContent
const plots = [...document.querySelectorAll(".js-plotly-plot")]
const plot = plots.find((one) => card(one).includes(`(${arguments[0]})`))
const path = plot?.querySelector(".scatterlayer path.js-line"), [curve] = plot?.data ?? []
return path && {points: curve.x.length, first: curve.y[0], last: curve.y[curve.y.length - 1],
                drawn: path.getTotalLength()}
"""


def look(browser: Browser, kept: Kept) -> dict[str, Any]:
    """Look for the training and the comparison in MLflow, go from there to Prefect, and from there back."""
    client = MlflowClient(kept.mlflow)
    train, compare = (client.get_run(kept.results[flow]["run_id"]) for flow in ("train", "compare"))
    seen: dict[str, Any] = {"name": train.info.run_name, "tags": train.data.tags}
    browser.open(list_address(kept.mlflow, train.info.experiment_id), width=2600)  # columns out of sight are not there
    seen["runs"] = browser.text(train.info.run_name, "final_loss")
    browser.open(f"{_address(kept, train)}/model-metrics", height=3000)
    seen["curve"] = browser.until(lambda: browser.ask(CURVE, "loss"))
    seen["artifacts"] = {
        name: _artifact(browser, kept, run, name)
        for run, name in ((train, "report.html"), (train, "parity.html"), (compare, "comparison.html"))
    }
    browser.open(train.data.tags["flow_run_url"])
    seen["flow run"] = browser.text(train.info.run_name, "Completed")
    browser.open(f"{kept.prefect}/artifacts/artifact/{_artifact_id(kept)}")
    link = browser.until(lambda: browser.driver.find_element(By.LINK_TEXT, "The run in MLflow"))
    seen["links"] = {one.text: one.get_attribute("href") for one in browser.driver.find_elements(By.TAG_NAME, "a")}
    browser.open(link.get_attribute("href"))
    seen["back"] = browser.text(train.info.run_name, "Overview")
    return seen


def _address(kept: Kept, run: Run) -> str:
    return f"{kept.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _artifact_id(kept: Kept) -> str:
    """Of the page that the training left in Prefect."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [kept.results["train"]["flow_run_id"]]}}}
    request = urllib.request.Request(
        f"{kept.prefect}/api/artifacts/filter",
        json.dumps(wanted).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        (artifact,) = json.load(answer)
    return str(artifact["id"])


def _artifact(browser: Browser, kept: Kept, run: Run, name: str) -> dict[str, Any]:
    """What an artifact's page is in the frame that MLflow shows it in."""
    browser.open(f"{_address(kept, run)}/artifacts/{name}")
    (frame,) = browser.until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "iframe.mlflow-html-iframe"))
    browser.driver.switch_to.frame(frame)
    heading = browser.until(lambda: browser.ask("return document.querySelector('h1')?.textContent"))
    found = {"heading": heading, "plots": len(browser.drawn_plots()) if name != "parity.html" else 0}
    browser.driver.switch_to.default_content()
    return found
