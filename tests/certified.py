"""Data whose best coefficients are certified, and exact arithmetic where they are not.

From the Statistical Reference Datasets of NIST (https://www.itl.nist.gov/div898/strd/). Norris comes with scipy, the
rows of Longley with statsmodels.
"""

import csv
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import distribution

import numpy as np


@dataclass(frozen=True)
class Certified:
    """Rows, (rows, features) and (rows,), and what is certified of their least-squares fit.

    Attributes:
        features: the columns' names.
        coefficients: (features,) and the intercept behind them; of another model its parameters, in order.
    """

    features: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    coefficients: np.ndarray

    def as_csv(self) -> str:
        """The rows with the target as the last column, y, every number as it is."""
        lines = [",".join((*self.features, "y"))]
        lines += [",".join(map(repr, row)) for row in np.column_stack([self.x, self.y]).tolist()]
        return "\n".join(lines) + "\n"


def norris() -> Certified:
    """A line through 36 points; the certified values stand in the file beside the rows."""
    lines = _shipped("scipy", "nist_linregress/Norris.dat").splitlines()
    rows = np.array([[float(text) for text in line.split()] for line in lines[60:96]])
    b = {line.split()[0]: float(line.split()[1]) for line in lines[30:46] if line.strip().startswith(("B0", "B1"))}
    return Certified(("x",), rows[:, 1:], rows[:, 0], np.array([b["B1"], b["B0"]]))


def longley() -> Certified:
    """Six economic columns of 16 years that nearly follow from each other."""
    table = list(csv.DictReader(_shipped("statsmodels", "longley/longley.csv").splitlines()))
    features = ("GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR")
    slopes = [15.0618722713733, -0.0358191792925910, -2.02022980381683, -1.03322686717359, -0.0511041056535807,
              1829.15146461355]  # fmt: skip
    return Certified(
        features,
        np.array([[float(row[name]) for name in features] for row in table]),
        np.array([float(row["TOTEMP"]) for row in table]),
        np.array([*slopes, -3482258.63459582]),
    )


MISRA1A = Certified(
    ("x",),
    np.array([[77.6], [114.9], [141.1], [190.8], [239.9], [289.0], [332.8], [378.4], [434.8], [477.3], [536.8], [593.1],
              [689.1], [760.0]]),
    np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]),
    np.array([2.3894212918e02, 5.5015643181e-04]),
)  # fmt: skip
DAN_WOOD = Certified(
    ("x",),
    np.array([[1.309], [1.471], [1.490], [1.565], [1.611], [1.680]]),
    np.array([2.138, 3.421, 3.597, 4.340, 4.882, 5.660]),
    np.array([7.6886226176e-01, 3.8604055871e00]),
)


def solve_exactly(x: np.ndarray, y: np.ndarray, *, intercept: bool = True) -> np.ndarray:
    """Least squares by the normal equations in fractions: no rounding but that of the answer.

    Args:
        x: (rows, features).
        y: (rows,).
        intercept: whether there is one, behind the slopes.

    Returns:
        (features,), and one more with an intercept.
    """
    rows = [[*map(Fraction, row), *([Fraction(1)] if intercept else []), Fraction(last)]
            for row, last in zip(x.tolist(), y.tolist(), strict=True)]  # fmt: skip
    size = len(rows[0]) - 1
    system = [[sum((row[i] * row[j] for row in rows), Fraction(0)) for j in range(size + 1)] for i in range(size)]
    for i in range(size):  # no pivot is zero: the matrix is positive definite
        system[i] = [value / system[i][i] for value in system[i]]
        for k in range(size):
            if k != i:
                system[k] = [a - system[k][i] * b for a, b in zip(system[k], system[i], strict=True)]
    return np.array([float(row[size]) for row in system])


def collinear(condition: float, noise: float, seed: int, rows: int = 60, columns: int = 4) -> Certified:
    """Columns in units far apart whose standardised condition number is about as given, with their exact answer.

    Args:
        condition: largest by smallest singular value.
        noise: its deviation, by that of what the columns explain.
        seed: of everything.
        rows, columns: how many.
    """
    random = np.random.default_rng(seed)
    q, v = (np.linalg.qr(random.normal(size=(size, columns)))[0] for size in (rows, columns))
    x = q * np.geomspace(1, 1 / condition, columns) @ v.T * rows**0.5
    x = x * 10.0 ** random.integers(-2, 3, columns) + random.normal(size=columns)
    explained = (x - x.mean(axis=0)) / x.std(axis=0) @ random.normal(size=columns) + 1
    y = explained + noise * explained.std() * random.normal(size=rows)
    return Certified(tuple(f"f{number}" for number in range(columns)), x, y, solve_exactly(x, y))


def _shipped(package: str, ending: str) -> str:
    """A file of an installed package, found without importing it."""
    (found,) = [file for file in distribution(package).files or () if str(file).endswith(ending)]
    return found.read_text()
