"""The eight levels, against each other, against gradient descent written out, and against published figures."""

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre
from torch import Tensor

from models.levels import LEVELS, Learned, Level, first_values

SAME = [level for level in LEVELS if level.same_as_first]


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = np.linspace(-np.pi, np.pi, 2000)[:, None]
    return torch.from_numpy(x).to(dtype), torch.from_numpy(np.sin(x)).to(dtype)


def run(level: Level, dtype: torch.dtype = torch.float64, steps: int | None = None, seed: int = 0) -> Learned:
    return level.run(*rows(dtype), first_values(seed), steps or level.steps, level.rate)


def test_there_are_eight_and_five_are_one_algorithm() -> None:
    assert [level.number for level in LEVELS] == list(range(1, 9))
    assert [level.number for level in SAME] == [1, 2, 3, 5, 7]
    assert [level.steps for level in LEVELS] == [2000] * 7 + [30_000]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_those_end_in_the_same_place(dtype: torch.dtype, most: float, seed: int) -> None:
    first, *others = (run(level, dtype, seed=seed) for level in SAME)
    for other in others:
        assert other.coefficients == pytest.approx(first.coefficients, rel=0, abs=most)
        assert other.losses == pytest.approx(first.losses, rel=1e3 * most)


def test_they_are_gradient_descent_on_the_normal_equations() -> None:
    x, y = (values.numpy() for values in rows())
    columns = x ** np.arange(4)
    expected = np.array(first_values(0))
    for _ in range(200):
        expected = expected - 2e-6 * (columns.T @ (columns @ expected - y[:, 0]))
    for level in SAME:
        found = list(run(level, steps=200).coefficients.values())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_the_optimizers_level_gives_the_exercises_figures() -> None:
    learned = run(LEVELS[5], torch.float32)
    assert learned.coefficients["b"] == pytest.approx(0.85724, abs=5e-6)
    assert learned.coefficients["d"] == pytest.approx(-0.09282, abs=5e-6)
    assert learned.losses[-1] == pytest.approx(8.906, abs=5e-4)


def test_the_own_functions_polynomial_is_the_formula_written_out() -> None:
    level, x = LEVELS[3], np.linspace(-3, 3, 31)
    learned = run(level, steps=300)
    a, b, c, d = learned.coefficients.values()
    found = np.polynomial.polynomial.polyval(x, level.polynomial(learned.coefficients))
    np.testing.assert_allclose(found, a + b * eval_legendre(3, c + d * x), rtol=1e-12, atol=1e-13)
    assert learned.losses[-1] < learned.losses[0] / 4


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_a_levels_network_is_its_polynomial(number: int) -> None:
    level = LEVELS[number - 1]
    learned = run(level, steps=20)
    assert learned.network is not None
    x, _ = rows()
    columns = x ** torch.arange(1, 4) if isinstance(learned.network, torch.nn.Linear) else x
    with torch.no_grad():
        predicted = learned.network.eval()(columns).numpy()
    expected = np.polynomial.polynomial.polyval(x.numpy(), level.polynomial(learned.coefficients))
    np.testing.assert_allclose(predicted, expected, rtol=1e-12, atol=1e-12)


def test_the_last_level_learns_with_its_random_forward_and_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = (run(LEVELS[7], steps=2000, seed=seed) for seed in (0, 0, 1))
    assert first.coefficients == again.coefficients
    assert first.losses == again.losses
    assert first.coefficients != other.coefficients
    assert np.median(first.losses[-100:]) < np.median(first.losses[:100]) / 5


def test_the_first_values_are_torchs_draw_of_a_layer() -> None:
    torch.manual_seed(3)
    layer = torch.nn.Linear(3, 1)
    assert first_values(3) == (layer.bias.item(), *layer.weight[0].tolist())


def test_the_last_level_is_descent_with_momentum_on_whatever_order_was_drawn() -> None:
    x, y = (values.numpy()[:, 0] for values in rows())
    start = first_values(0)
    learned = LEVELS[7].run(*rows(), start, 5, 1e-8)
    first_values(0)
    coefficients, velocity = np.array([*start, 0.0]), np.zeros(5)
    [torch.randn(()) for _ in range(5)]  # the network's own first values, which the start replaces
    for _ in range(5):
        order = int(torch.randint(3, 6, ()))
        shared = sum(x**power for power in range(4, order + 1)) + 0 * x
        columns = np.column_stack([x**0, x, x**2, x**3, shared])
        used = slice(5 if order > 3 else 4)  # torch leaves a parameter alone that had no part in the loss
        velocity[used] = (0.9 * velocity + 2 * columns.T @ (columns @ coefficients - y))[used]
        coefficients[used] -= 1e-8 * velocity[used]
    np.testing.assert_allclose(list(learned.coefficients.values()), coefficients, rtol=0, atol=1e-12)
