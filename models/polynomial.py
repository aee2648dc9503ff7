"""A polynomial of any degree: a linear regression on functions of each feature."""

from math import comb

import torch
from torch import Tensor

from models.linear import LinearRegression


class Polynomial(LinearRegression):
    """y = c0 + c1 x + c2 x^2 + ... + cn x^n; of several features the powers of each, without their products.

    Args:
        degree: n, at least 1.
        intercept: whether there is a c0.
    """

    def __init__(self, in_features: int = 1, out_features: int = 1, degree: int = 3, *, intercept: bool = True) -> None:
        super().__init__(in_features * degree, out_features, intercept=intercept)
        self.degree = degree
        self.symbols = tuple(f"c{order}" for order in range(1, degree + 1))
        self.constant = "c0"

    def columns(self, x: Tensor) -> Tensor:
        """The powers 1 to n of each feature, (rows, features * degree), those of the first feature first.

        Products one after another, since they are rounded alike everywhere; `pow` is not.
        """
        powers = [x]
        for _ in range(1, self.degree):
            powers.append(powers[-1] * x)
        return torch.stack(powers, dim=-1).flatten(1)

    def unscaled(self, weights: Tensor, intercepts: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients for x of those for (x - mean) / deviation, in float64, by the binomial theorem."""
        scaled = weights.double().reshape(*weights.shape[:-1], len(mean), self.degree)
        raw, constant = torch.zeros_like(scaled), intercepts.double()
        mean, deviation = mean.double(), deviation.double()
        for power in range(1, self.degree + 1):
            term = scaled[..., power - 1] / deviation**power
            constant = constant + (term * (-mean) ** power).sum(dim=-1)
            for order in range(1, power + 1):
                raw[..., order - 1] += term * comb(power, order) * (-mean) ** (power - order)
        return raw.flatten(-2), constant


class ChebyshevPolynomial(Polynomial):
    """y = t0 + t1 T1(u) + ... + tn Tn(u), where u is x moved and stretched so that the training range is -1 to 1.

    The same functions as the powers give, in columns that hardly depend on each other (L. N. Trefethen, Approximation
    Theory and Approximation Practice, SIAM 2013, chapter 3): gradient descent needs fewer steps, and high degrees
    keep their digits.
    """

    center: Tensor
    radius: Tensor

    def __init__(self, in_features: int = 1, out_features: int = 1, degree: int = 3) -> None:
        super().__init__(in_features, out_features, degree)
        self.symbols = tuple(f"t{order}" for order in range(1, degree + 1))
        self.constant = "t0"
        self.register_buffer("center", torch.zeros(in_features))
        self.register_buffer("radius", torch.ones(in_features))

    def set_range(self, x: Tensor) -> None:
        """Take the range of these rows, (rows, features), for the whole; a constant column is only moved."""
        low, high = torch.aminmax(x, dim=0)
        radius = high / 2 - low / 2
        self.center.copy_(low / 2 + high / 2)
        self.radius.copy_(torch.where(radius == 0, 1.0, radius))

    def columns(self, x: Tensor) -> Tensor:
        """T1 to Tn of each feature, (rows, features * degree), by T(k+1) = 2 u T(k) - T(k-1)."""
        u = (x - self.center) / self.radius
        twice = u + u
        terms = [u, twice * u - 1]
        while len(terms) < self.degree:
            terms.append(twice * terms[-1] - terms[-2])
        return torch.stack(terms[: self.degree], dim=-1).flatten(1)

    def unscaled(self, weights: Tensor, intercepts: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """The same: u goes from -1 to 1 over the training range, whatever the feature's unit."""
        return weights.double(), intercepts.double()
