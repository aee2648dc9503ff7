"""The steps of the flows: the only room that knows Prefect, MLflow and the disk."""
