"""How MLflow's pages list a flow's runs: as trainings of models, and with the columns that tell them apart.

MLflow keeps a view, what its pages call a saved one, as a tag of the experiment; the page of the runs offers it under
Views, and an address with its key opens it.
"""

import json
import time

VIEW = "fourfold"
COLUMNS = (
    "attributes.`Dataset`",
    "params.`model`",
    "params.`optimizer`",
    "params.`lr`",
    "metrics.`final_loss`",
    "metrics.`held_out/rmse`",
    "tags.`parity`",
    "tags.`model.alias`",
    "tags.`ranking`",
    "tags.`outcome`",
)


def experiment_tags() -> dict[str, str]:
    """What an experiment of ours is made with."""
    now = int(time.time() * 1000)
    view = {"name": VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps({"selectedColumns": COLUMNS})}
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}


def list_address(ui: str, experiment_id: str) -> str:
    """Where a browser finds the runs of an experiment, in that view."""
    return f"{ui}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
