"""Whether the number format can resolve what the data ask for."""

import torch

from fourfold.configuration import TrainConfig
from tasks.build_model import BuiltModel
from tasks.tracking import RunRecord


def warn(config: TrainConfig, built: BuiltModel, record: RunRecord) -> tuple[str, ...]:
    """Warn where the columns are too nearly dependent for the dtype, with a sentence that the run keeps as a tag."""
    warnings = (warning,) if (warning := conditioning(config, built)) else ()
    record.tags({"warning": "; ".join(warnings) or None})
    return warnings


def largest_condition_number(dtype: torch.dtype) -> float:
    """Up to which condition number the gradient along the weakest direction, its square smaller, is above rounding."""
    return float(torch.finfo(dtype).eps ** -0.5)


def conditioning(config: TrainConfig, built: BuiltModel) -> str:
    """Say that a linear model's condition number is beyond what the dtype resolves; empty where it is not."""
    if not built.is_linear:
        return ""
    number, resolved = built.condition_number(), largest_condition_number(built.x.dtype)
    if number <= resolved:
        return ""
    remedies = []
    if config.dtype == "float32" and number <= largest_condition_number(torch.float64):
        remedies.append("--dtype float64")
    if not config.standardizes:
        remedies.append("--standardize")
    if config.model == "polynomial":
        remedies.append("a lower --degree" if config.basis == "chebyshev" else "--basis chebyshev")
    elif not config.decorrelate:
        remedies.append("--decorrelate")
    remedies.append("or fewer columns")
    return (
        f"the fitted columns have condition number {number:.2g}, and {config.dtype} resolves up to {resolved:.2g}: the "
        f"gradient along the weakest direction is lost in rounding, and coefficients may be far off; try "
        f"{', '.join(remedies)}"
    )
