"""Networks that scale inside, by the moments of rows as torch computes them."""

import torch
from torch import Tensor, nn

from models.standardize import Standardized


def rescaled(
    core: nn.Module, x: Tensor, y: Tensor, *, centred: bool = True, decorrelated: bool = False
) -> Standardized:
    """Put a core into the scaling of (rows, features) and (rows, targets)."""
    wide = x.double()
    moments = (moment for rows in (wide, y.double()) for moment in torch.std_mean(rows, dim=0, correction=0)[::-1])
    covariance = torch.cov(wide.T, correction=0).reshape(x.shape[1], -1) if decorrelated else None
    return Standardized.to_moments(core, *moments, dtype=x.dtype, centred=centred, x_covariance=covariance)
