"""The rows on which a file has to prove itself."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fourfold.probes import probes, sample
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron


def rows(count: int, features: int, seed: int = 0) -> Tensor:
    return 5 + 2 * torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def probed(network: nn.Module, training: Tensor, **others: Tensor) -> dict[str, Tensor]:
    named = list(probes(network.eval().requires_grad_(False), {"training rows": training, **others}))
    assert len(dict(named)) == len(named), "each name once"
    return dict(named)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return MultilayerPerceptron(3, 1, (8,), "relu")


def test_the_sets_have_names_and_sizes(network: nn.Module) -> None:
    held_out = rows(5, 3, seed=1)
    found = probed(network, rows(40, 3), **{"held-out rows": held_out})
    assert {name: len(x) for name, x in found.items()} == {
        "training rows": 40,
        "held-out rows": 5,
        "corners of the training range": 8,
        "corners of 10 times it": 8,
        "corners of 100 times it": 8,
        "random rows inside": 128,
        "random rows of all magnitudes": 128,
        "zeros": 1,
        "one-hot": 3,
        "subnormal": 6,
        "largest finite": 14,
        "NaN": 5,
        "infinity": 5,
        "minus infinity": 5,
        "driven to zero": len(found["driven to zero"]),
        "driven to bends and flats": len(found["driven to bends and flats"]),
    }
    assert 0 < len(found["driven to zero"]) <= 32
    assert list(found)[:2] == ["training rows", "held-out rows"]
    assert torch.equal(found["held-out rows"], held_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 3, 200])
def test_every_set_has_the_width_and_dtype_of_the_rows(features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = probed(MultilayerPerceptron(features, 2, (4,)).to(dtype), rows(40, features).to(dtype))
    for name, x in found.items():
        assert x.dtype == dtype, name
        assert x.dim() == 2, name
        assert x.shape[1] == features, name
        assert 0 < len(x) <= 10_000, name


def test_the_same_network_and_rows_give_the_same_sets(network: nn.Module) -> None:
    training = rows(40, 3)
    torch.manual_seed(1)
    first = probed(network, training)
    torch.manual_seed(2)
    second = probed(network, training)
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert torch.equal(x.nan_to_num(), second[name].nan_to_num()), name


def test_the_generator_and_the_rows_are_left_as_they_were(network: nn.Module) -> None:
    training = rows(40, 3)
    before, state = training.clone(), torch.get_rng_state()
    probed(network, training)
    assert torch.equal(training, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_corners_reach_the_range_and_beyond(network: nn.Module) -> None:
    training = torch.tensor([[0.0, 10.0, -4.0], [2.0, 30.0, 4.0], [1.0, 20.0, 0.0]])
    found = probed(network, training)
    expected = set(itertools.product((0.0, 2.0), (10.0, 30.0), (-4.0, 4.0)))
    assert set(map(tuple, found["corners of the training range"].tolist())) == expected
    middle, half = torch.tensor([1.0, 20.0, 0.0]), torch.tensor([1.0, 10.0, 4.0])
    for times in (10, 100):
        assert torch.equal((found[f"corners of {times} times it"] - middle).abs(), (times * half).expand(8, 3))
    inside = found["random rows inside"]
    assert ((inside - middle).abs() <= half).all()
    assert (inside.std(dim=0) > 0.4 * half).all()


def test_many_features_have_some_corners_and_the_extremes_among_them() -> None:
    training = rows(40, 200)
    low, high = training.aminmax(dim=0)
    corners = probed(LinearRegression(200), training)["corners of the training range"]
    assert len(corners) == 64
    assert len(corners.unique(dim=0)) == 64
    torch.testing.assert_close(corners[0], low)
    torch.testing.assert_close(corners[1], high)


def test_random_magnitudes_cover_many(network: nn.Module) -> None:
    distance = (probed(network, rows(40, 3))["random rows of all magnitudes"] - 5).abs()
    assert distance.min() < 0.3
    assert distance.max() > 1e5


def test_a_feature_that_never_changes_is_varied_all_the_same(network: nn.Module) -> None:
    training = rows(40, 3)
    training[:, 1] = 7.0
    found = probed(network, training)
    assert set(found["corners of the training range"][:, 1].tolist()) == {6.5, 7.5}
    assert all(torch.isfinite(found[name]).all() for name in ("random rows inside", "driven to zero"))


def test_values_that_numbers_treat_apart_are_there(network: nn.Module) -> None:
    training = rows(40, 3)
    found = probed(network, training)
    limits = torch.finfo(torch.float32)
    assert not found["zeros"].any()
    assert torch.equal(found["one-hot"], torch.eye(3))
    smallest = math.ldexp(1, -149)
    assert set(found["subnormal"].abs().flatten().tolist()) == {smallest, math.ldexp(1, -127), limits.smallest_normal}
    alone, together = found["largest finite"].split([6, 8])
    assert torch.equal(alone, limits.max * torch.cat([torch.eye(3), -torch.eye(3)]))
    assert len(set(map(tuple, together.tolist()))) == 8
    assert (together.abs() == limits.max).all()
    for name, value in (("NaN", math.nan), ("infinity", math.inf), ("minus infinity", -math.inf)):
        *single, _mixed, together = found[name]
        special = torch.isnan if math.isnan(value) else (lambda x, value=value: x == value)
        assert torch.equal(special(torch.stack(single)), torch.eye(3, dtype=torch.bool)), name
        assert torch.isin(torch.stack(single)[~torch.eye(3, dtype=torch.bool)], training).all(), name
        assert special(together).all(), name


def test_one_hot_rows_of_many_features_are_a_sample() -> None:
    unit = probed(LinearRegression(200), rows(40, 200))["one-hot"]
    assert unit.shape == (64, 200)
    assert (unit.sum(dim=1) == 1).all()
    assert len(unit.unique(dim=0)) == 64


# Sampling.


def test_of_many_rows_a_sample_is_taken_and_says_so(network: nn.Module) -> None:
    held_out = torch.arange(30_000.0).reshape(-1, 1).repeat(1, 3)
    found = probed(network, rows(10_000, 3), **{"held-out rows": held_out, "points asked for": rows(10_001, 3)})
    assert list(found)[:3] == [
        "training rows", "10000 of the 30000 held-out rows", "10000 of the 10001 points asked for",
    ]  # fmt: skip
    taken = found["10000 of the 30000 held-out rows"][:, 0]
    assert torch.equal(taken // 3, torch.arange(10_000.0)), "one of each three"
    assert taken.remainder(3).unique().tolist() == [0, 1, 2], "not always the same one"


def test_the_range_is_that_of_all_training_rows_not_of_the_sample(network: nn.Module) -> None:
    training = rows(20_000, 3)
    taken = sample(torch.arange(20_000), 10_000)
    (left_out,) = torch.nonzero(~torch.isin(torch.arange(20_000), taken))[0].tolist()
    training[left_out] = 1000.0
    assert probed(network, training)["corners of the training range"].max() == pytest.approx(1000)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_sample_is_drawn_from_equal_parts_in_order(count: int) -> None:
    x = torch.arange(28.0)[:, None]
    taken = sample(x, count).flatten()
    assert torch.equal(taken // (28 // count), torch.arange(float(count)))
    assert torch.equal(taken, sample(x, count).flatten())


def test_a_sample_of_few_rows_is_all_of_them() -> None:
    x = torch.arange(5.0)[:, None]
    assert torch.equal(sample(x, 5), x)
    assert torch.equal(sample(x, 9), x)


def test_empty_sets_are_left_out(network: nn.Module) -> None:
    assert "points asked for" not in probed(network, rows(5, 3), **{"points asked for": rows(0, 3)})


# Searched rows.


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "silu", "softsign"])
def test_rows_driven_to_zero_have_predictions_near_zero(activation: str) -> None:
    """Where terms of the order of one cancel to rounding."""
    torch.manual_seed(1)
    network = MultilayerPerceptron(3, 1, (16,), activation)
    training = rows(60, 3) - 5
    driven = probed(network, training)["driven to zero"]
    assert network(driven).abs().median() < 1e-6
    assert network(training).abs().median() > 1e-2


def test_a_plane_is_driven_to_zero_everywhere() -> None:
    network = LinearRegression(3, 2)
    torch.nn.init.constant_(network.linear.bias, 2.0)
    training = rows(60, 3)
    driven = network(probed(network, training)["driven to zero"])
    assert (driven.abs().amin(dim=1) < 1e-5).all(), "one of the two targets, in turn"
    assert (driven.abs().amin(dim=0) < 1e-5).all(), "each of the two"


@pytest.mark.parametrize("activation", ["relu", "tanh", "softsign"])
def test_rows_driven_to_bends_reach_the_bends_of_every_unit(activation: str) -> None:
    torch.manual_seed(0)
    network = MultilayerPerceptron(3, 1, (6,), activation)
    driven = probed(network, rows(60, 3))["driven to bends and flats"]
    before = network.layers[0](driven)
    for level in (0.0, 20.0, -20.0):
        assert ((before - level).abs().amin(dim=0) < 1e-4).all(), f"every unit at {level}"


def test_every_layer_has_its_turn() -> None:
    torch.manual_seed(0)
    network = MultilayerPerceptron(3, 1, (6, 4), "relu")
    driven = probed(network, rows(60, 3))["driven to bends and flats"]
    second = network.layers[2](network.layers[:2](driven))
    assert (second.abs() < 1e-4).any(dim=0).sum() >= 3, "units that are dead everywhere cannot be driven"


class Activated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.activation = nn.Linear(3, 6), nn.Linear(6, 1), activation

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.last(self.activation(self.first(x)))
        return prediction


@pytest.mark.parametrize(
    "activation",
    [torch.relu, nn.functional.relu, nn.ReLU(), Tensor.tanh, nn.functional.leaky_relu, nn.GELU(), nn.Hardtanh()],
    ids=["torch", "functional", "module", "method", "leaky", "gelu", "hardtanh"],
)
def test_an_activation_is_seen_however_it_is_called(activation: Callable[[Tensor], Tensor]) -> None:
    network = Activated(activation)
    driven = probed(network, rows(60, 3))["driven to bends and flats"]
    assert ((network.first(driven)).abs().amin(dim=0) < 1e-4).all()


def test_searched_rows_stay_within_reach() -> None:
    """A unit that hardly depends on the rows would drive them to the end of the world."""
    network = LinearRegression(3)
    with torch.no_grad():
        network.linear.weight.copy_(torch.tensor([[1e-6, 0.0, 0.0]]))
        network.linear.bias.fill_(1.0)
    assert "driven to zero" not in probed(network, rows(60, 3))


class Forward(nn.Module):
    """A plane that makes its prediction in some way of its own."""

    def __init__(self, forward: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.own = nn.Linear(3, 1), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.linear, x)


class Irreversible(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        raise NotImplementedError("no way back")


def without_gradient(linear: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = linear(x)
        return prediction


STUBBORN: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "rows detached": lambda linear, x: linear(x.detach()),
    "no gradients": without_gradient,
    "raises on the way back": lambda linear, x: linear(Irreversible.apply(x)),
    "overwrites what the gradient needs": lambda linear, x: torch.tanh(linear(x)).mul_(2).add_(1),
    "a step": lambda linear, x: torch.round(linear(x)),
    "a constant": lambda linear, x: 0 * linear(x) + 1,
    "changes its rows": lambda linear, x: linear(x.mul_(2)),
}


@pytest.mark.parametrize("name", STUBBORN)
def test_a_network_that_cannot_be_searched_still_gets_all_other_rows(name: str) -> None:
    training = rows(40, 3)
    before = training.clone()
    found = probed(Forward(STUBBORN[name]), training)
    assert {"training rows", "random rows inside", "minus infinity"} <= found.keys()
    assert torch.equal(training, before)
