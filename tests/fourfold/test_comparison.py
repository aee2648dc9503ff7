"""The rules of a comparison, against counting by hand, brute force and scipy."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from fourfold import comparison
from fourfold.comparison import (
    AGAIN,
    MOMENTA,
    PLAIN,
    SAME_LOSS,
    SHUFFLE,
    SIGNIFICANCE,
    AtRate,
    Contestant,
    Shuffle,
    Spread,
    Standing,
    as_numbers,
    beats,
    best_of,
    contestants,
    controls,
    failed_controls,
    fewest_seeds,
    grid,
    places,
    rounding_floor,
    standing,
)
from fourfold.errors import RequestError
from fourfold.losses import LOSSES
from fourfold.optimizers import default_lr, optimizer_classes
from fourfold.population import Members
from models.linear import LinearRegression

INF, NAN = math.inf, math.nan
RATES = (1e-3, 1e-2, 1e-1)


def of(*losses: Sequence[float], rates: Sequence[float] = RATES, **other: Any) -> Members:
    """Members with these training losses, a row for each learning rate; other arrays where they are given."""
    loss = np.array(losses, dtype=np.float64)
    shape = loss.shape
    given = {
        "learning_rates": np.array(rates, dtype=np.float64),
        "parameters": np.zeros((*shape, 1)),
        "loss": loss,
        "validation_loss": np.full(shape, NAN),
        "test_loss": np.full(shape, NAN),
        "averaged_loss": np.full(shape, NAN),
        "diverged": np.isinf(loss) | np.isnan(loss),
        "evaluations": np.full(shape, 100),
        "evaluations_to_goal": np.full(shape, INF),
        "curve": np.zeros((*shape, 2)),
        "seconds": np.zeros(shape),
    }
    return Members(**given | {name: np.asarray(values) for name, values in other.items()})


def judged(members: Members, on_grid: Sequence[float] = RATES, same_lr: float = 1e-2, lr: float = 1e-3) -> Standing:
    contestant = Contestant.parse("SGD")
    return standing(replace(contestant, optimizer=replace(contestant.optimizer, lr=lr)), members, on_grid, same_lr)


def placed(label: str, losses: Sequence[float]) -> Standing:
    """A standing with these losses at its only learning rate."""
    members = of(losses, rates=(1e-3,))
    return standing(replace(Contestant.parse("SGD"), label=label), members, (1e-3,), 1e-3)


def sign_test(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one wins so often that a fair coin would so seldom, two-sided; no ties."""
    wins = sum(a < b for a, b in zip(one, other, strict=True))
    tail = sum(math.comb(len(one), heads) for heads in range(wins, len(one) + 1))
    return 2 * wins > len(one) and 2 * tail / 2 ** len(one) <= SIGNIFICANCE


class TestContestant:
    """What is typed, and what is compared."""

    @pytest.mark.parametrize("name", optimizer_classes())
    @pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
    def test_a_name_is_an_optimizer_at_its_default_rate(self, name: str, spelling: type[str]) -> None:
        contestant = Contestant.parse(spelling(name))
        assert (contestant.label, contestant.optimizer.name) == (name, name)
        assert contestant.optimizer.lr == default_lr(name)
        assert contestant.optimizer.lr_for == {}

    @pytest.mark.parametrize("name", [name for name in optimizer_classes() if name not in ("Muon", "SparseAdam")])
    def test_none_decays_its_weights(self, name: str) -> None:
        """Where the gradient is zero the weights stay, but for the decay that ASGD calls lambd."""
        network = LinearRegression()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = Contestant.parse(name).optimizer.build(network)
        for group in optimizer.param_groups:
            assert group.get("weight_decay", 0) == 0
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type]
        if name != "ASGD":
            for parameter, value in zip(network.parameters(), before, strict=True):
                assert torch.equal(parameter, value)

    def test_options_follow_behind_colons(self) -> None:
        contestant = Contestant.parse("sgd:momentum=0.9:nesterov=true")
        assert contestant.label == "SGD:momentum=0.9:nesterov=true"
        assert contestant.optimizer.options["momentum"] == 0.9
        assert contestant.optimizer.options["nesterov"] is True
        group = contestant.optimizer.build(LinearRegression()).param_groups[0]
        assert (group["momentum"], group["nesterov"], group["lr"]) == (0.9, True, default_lr("SGD"))

    @pytest.mark.parametrize("text", ["SGD:momentum=0.9", "adamw", "Adam:betas=0.8,0.9", "LBFGS:max_iter=5", "muon"])
    def test_its_texts_are_its_options_as_a_command_line_takes_them(self, text: str) -> None:
        contestant = Contestant.parse(text)
        parsed = type(contestant.optimizer).parse(contestant.optimizer.name, 1.0, contestant.texts)
        assert parsed.options == contestant.optimizer.options

    @pytest.mark.parametrize(
        "text", ["AdamW:weight_decay=0.1", "SGD:momentum=0.9:weight_decay=0", "muon:weight_decay=1"]
    )
    def test_a_weight_decay_is_refused(self, text: str) -> None:
        with pytest.raises(RequestError, match=f"--optimizers {text}: weight decay is 0 for all"):
            Contestant.parse(text)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("Adamm", "is unknown; did you mean .*Adam"),
            ("", "is unknown"),
            ("SGD:momentm=0.9", "SGD has no option momentm"),
            ("SGD:momentum=much", "'much' is not a finite number"),
            ("SGD:", "has no option"),
            ("SGD:lr=0.1", "the learning rate is given by"),
            ("LBFGS:weight_decay", "weight_decay|has no option"),
            (r"SGD:momentum=\d", "is not a finite number"),
            (r"\g", "is unknown"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, text: str, reason: str) -> None:
        with pytest.raises(RequestError, match=reason):
            Contestant.parse(text)

    @pytest.mark.parametrize("all_of_them", ["all", "ALL", "All"])
    def test_all_are_those_of_torch(self, all_of_them: str) -> None:
        assert [one.label for one in contestants([all_of_them])] == list(optimizer_classes())

    def test_they_keep_their_order(self) -> None:
        assert [one.label for one in contestants(["rprop", "adam", "SGD"])] == ["Rprop", "Adam", "SGD"]

    def test_one_with_other_options_is_another(self) -> None:
        assert len(contestants(["SGD", "SGD:momentum=0.9", "SGD:momentum=0.5"])) == 3

    @pytest.mark.parametrize("texts", [["Adam", "SGD", "adam"], ["SGD:momentum=0.9", "Adam", "sgd:momentum=0.9"]])
    def test_one_twice_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(RequestError, match=r"--optimizers names .* twice; once is enough"):
            contestants(texts)

    @pytest.mark.parametrize("texts", [[], ["SGD"]])
    def test_fewer_than_two_are_refused(self, texts: list[str]) -> None:
        with pytest.raises(RequestError, match="--optimizers"):
            contestants(texts)


class TestGrid:
    """Learning rates as many and as wide for all."""

    @pytest.mark.parametrize("centre", [1e-3, 0.01, 1.0, 3.7])
    @pytest.mark.parametrize("count", [2, 3, 4, 9, 21])
    @pytest.mark.parametrize("decades", [0.5, 2, 4, 6])
    def test_it_is_even_in_the_logarithm_about_its_centre(self, centre: float, count: int, decades: float) -> None:
        rates = grid(centre, count, decades)
        assert len(rates) == count
        assert math.log10(rates[-1] / rates[0]) == pytest.approx(decades, abs=1e-5)
        assert math.sqrt(rates[0] * rates[-1]) == pytest.approx(centre, rel=1e-5)
        assert np.diff(np.log10(rates)) == pytest.approx(np.full(count - 1, decades / (count - 1)), abs=1e-5)

    @pytest.mark.parametrize("name", optimizer_classes())
    @pytest.mark.parametrize("count", [3, 5, 9])
    def test_the_middle_is_the_default_itself(self, name: str, count: int) -> None:
        assert grid(default_lr(name), count, 4)[count // 2] == default_lr(name)


class TestSpread:
    """Median and quartiles where some have failed."""

    @pytest.mark.parametrize(("count", "failures"), [(n, bad) for n in range(1, 13) for bad in range(n + 1)])
    def test_quartiles_are_means_of_two_neighbours_at_most(self, count: int, failures: int) -> None:
        values = [*np.random.default_rng(count).random(count - failures), *[INF] * failures]
        np.random.default_rng(1).shuffle(values)
        spread, ordered = Spread.of(np.array(values)), sorted(values)
        for share, quantile in (
            (Fraction(1, 2), spread.median),
            (Fraction(1, 4), spread.q1),
            (Fraction(3, 4), spread.q3),
        ):
            place = share * count
            low, high = ordered[math.ceil(place) - 1], ordered[math.floor(place)]
            assert quantile == (low if low == high else (low + high) / 2)
            assert type(quantile) is float

    @pytest.mark.parametrize("count", range(1, 30))
    def test_it_is_numpys_where_all_worked(self, count: int) -> None:
        values = np.random.default_rng(count).random(count)
        expected = np.quantile(values, [0.5, 0.25, 0.75], method="averaged_inverted_cdf")
        spread = Spread.of(values)
        assert (spread.median, spread.q1, spread.q3) == pytest.approx(tuple(expected), rel=1e-15)

    @pytest.mark.parametrize("values", [[INF], [INF] * 4, [1, INF], [1, INF, INF, INF], [1, 2, 3, INF], [1, 2, INF]])
    def test_an_infinity_never_becomes_nan(self, values: list[float]) -> None:
        spread = Spread.of(np.array(values, dtype=np.float64))
        assert not any(math.isnan(value) for value in (spread.median, spread.q1, spread.q3))
        assert spread.q1 <= spread.median <= spread.q3

    def test_two_losses_that_are_huge_have_a_huge_mean(self) -> None:
        assert Spread.of(np.array([1.5e308, 1.7e308])).median == pytest.approx(1.6e308)

    def test_it_leaves_its_values_in_their_order(self) -> None:
        values = np.array([3.0, 1.0, 2.0])
        assert Spread.of(values) == Spread(2.0, 1.0, 3.0)
        assert values.tolist() == [3.0, 1.0, 2.0]


class TestStanding:
    """Which learning rate is chosen, and what is reported of it."""

    def test_the_lowest_median_is_chosen(self) -> None:
        found = judged(of([5, 5, 5], [1, 9, 9], [4, 4, 0]))
        assert found.tuned.lr == 1e-1
        assert found.tuned.losses.tolist() == [4, 4, 0]
        assert found.choosing.tolist() == [5, 9, 4]
        assert found.tuned_row == 2

    def test_validation_rows_choose_and_test_rows_report(self) -> None:
        members = of(
            [1, 1, 1],
            [2, 2, 2],
            [3, 3, 3],
            validation_loss=[[6, 6, 6], [4, 4, 4], [5, 5, 5]],
            test_loss=[[7, 8, 9], [10, 11, 12], [0, 0, 0]],
        )
        found = judged(members)
        assert found.tuned.lr == 1e-2
        assert found.tuned.losses.tolist() == [10, 11, 12]
        assert found.choosing.tolist() == [6, 4, 5]
        assert found.default.losses.tolist() == [7, 8, 9]
        assert found.tuned.loss == Spread(11, 10, 12)

    def test_validation_rows_alone_choose_and_the_training_rows_report(self) -> None:
        found = judged(of([1], [2], [3], validation_loss=[[6], [5], [4]]))
        assert (found.tuned.lr, found.tuned.losses.tolist()) == (1e-1, [3])

    def test_test_rows_never_choose(self) -> None:
        found = judged(of([1], [2], [3], test_loss=[[6], [5], [4]]))
        assert (found.tuned.lr, found.tuned.losses.tolist()) == (1e-3, [6])

    def test_the_lower_of_equal_rates_is_chosen(self) -> None:
        assert judged(of([2], [1], [1])).tuned.lr == 1e-2

    def test_a_diverged_training_is_infinity_whatever_loss_it_ended_with(self) -> None:
        members = of([1, 1, 1], [5, 5, 5], [6, 6, 6], diverged=[[True, True, False], [False] * 3, [False] * 3])
        found = judged(members)
        assert found.tuned.lr == 1e-2
        assert found.default.losses.tolist() == [INF, INF, 1]
        assert found.default.diverged == pytest.approx(2 / 3)
        assert found.diverged == pytest.approx(2 / 9)

    def test_a_loss_that_is_no_number_is_infinity(self) -> None:
        members = of([1, 1], [2, 2], [3, 3], test_loss=[[NAN, 7], [1, 1], [1, 1]])
        assert judged(members).tuned.losses.tolist() == [INF, 7]

    @pytest.mark.parametrize("failed", [0, 1, 2])
    @pytest.mark.parametrize("seeds", [1, 2, 3, 8])
    def test_a_rate_at_which_all_failed_is_not_chosen(self, failed: int, seeds: int) -> None:
        rows = [[4.0] * seeds, [3.0] * seeds, [2.0] * seeds]
        rows[failed] = [INF] * seeds
        expected = min((row[0], lr) for row, lr in zip(rows, RATES, strict=True))[1]
        found = judged(of(*rows))
        assert found.tuned.lr == expected
        assert found.choosing[failed] == INF

    def test_half_failed_is_failed(self) -> None:
        found = judged(of([1, 1, INF, INF], [9, 9, 9, 9], [INF] * 4))
        assert found.tuned.lr == 1e-2

    def test_where_nothing_worked_the_first_of_the_grid_stands_for_all(self) -> None:
        found = judged(of([INF], [INF], [INF], [INF], rates=(1e-4, *RATES)), same_lr=1e-4)
        assert found.tuned.lr == 1e-3
        assert found.tuned.losses.tolist() == [INF]
        assert found.diverged == 1

    @pytest.mark.parametrize(("best", "edge"), [(0, True), (1, False), (2, True)])
    def test_the_edges_of_the_grid_are_told(self, best: int, edge: bool) -> None:
        rows = [[3.0], [3.0], [3.0]]
        rows[best] = [1.0]
        assert bool(judged(of(*rows)).on_grid_edge) is edge

    @pytest.mark.parametrize(("best", "edge"), [(1, True), (2, False), (3, True)])
    def test_the_edges_are_those_of_the_grid_and_not_of_all_rates(self, best: int, edge: bool) -> None:
        rows = [[3.0] for _ in range(5)]
        rows[best] = [1.0]
        found = judged(of(*rows, rates=(1e-4, *RATES, 1.0)), same_lr=1.0, lr=1e-4)
        assert found.tuned.lr == RATES[best - 1]
        assert bool(found.on_grid_edge) is edge

    def test_a_rate_beside_the_grid_is_shown_and_never_chosen(self) -> None:
        found = judged(of([0], [5], [4], [6], [1], rates=(1e-4, *RATES, 1.0)), same_lr=1.0, lr=1e-4)
        assert found.on_grid.tolist() == [False, True, True, True, False]
        assert (found.default.lr, found.default.losses.tolist()) == (1e-4, [0])
        assert (found.same_lr.lr, found.same_lr.losses.tolist()) == (1.0, [1])
        assert (found.tuned.lr, found.tuned.losses.tolist()) == (1e-2, [4])

    def test_the_share_of_the_diverged_is_that_of_the_grid(self) -> None:
        found = judged(of([INF], [5], [INF], [6], [INF], rates=(1e-4, *RATES, 1.0)), same_lr=1.0, lr=1e-4)
        assert found.diverged == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        ("reached", "median"),
        [([5, 7, 9], 7), ([5, 7, INF], 7), ([5, INF, INF], INF), ([5, 7, INF, INF], INF), ([5, 7, 9, INF], 8)],
    )
    def test_the_goal_counts_where_more_than_half_came_there(self, reached: list[float], median: float) -> None:
        count = len(reached)
        found = judged(of([1] * count, [2] * count, [3] * count, evaluations_to_goal=[reached] * 3))
        assert found.tuned.evaluations_to_goal == median

    def test_the_evaluations_are_the_median_of_those_computed(self) -> None:
        found = judged(of([1] * 3, [2] * 3, [3] * 3, evaluations=[[3, 100, 7], [1, 1, 1], [2, 2, 2]]))
        assert (found.tuned.evaluations, found.same_lr.evaluations) == (7, 1)

    def test_averages_are_told_where_there_are_any(self) -> None:
        assert judged(of([1] * 3, [2] * 3, [3] * 3)).averaged is None
        averaged = [[6, 4, 5], [1, 1, 1], [0, 0, 0]]
        assert judged(of([1] * 3, [2] * 3, [3] * 3, averaged_loss=averaged)).averaged == 5

    @pytest.mark.parametrize("bad", [NAN, INF, 1.0])
    def test_averages_of_a_failure_are_worse_than_any(self, bad: float) -> None:
        averaged = [[6, 4, bad], [1, 1, 1], [0, 0, 0]]
        assert judged(of([1, 1, INF], [2] * 3, [3] * 3, averaged_loss=averaged)).averaged == 6

    def test_numbers_for_machines_are_those_of_the_rate(self) -> None:
        at = AtRate(0.1, np.array([1.0, 2.0, INF]), 1 / 3, 50.0, 40.0)
        told = as_numbers(at)
        assert told["lr"] == 0.1
        assert told["loss"] == {"median": 2.0, "q1": 1.0, "q3": INF}
        assert (told["diverged"], told["evaluations"], told["evaluations_to_target"]) == (1 / 3, 50.0, 40.0)


class TestBeats:
    """A sign test over the seeds."""

    @pytest.mark.parametrize("seeds", range(1, 25))
    def test_it_is_a_two_sided_sign_test(self, seeds: int) -> None:
        for wins in range(seeds + 1):
            one, other = np.ones(seeds), np.where(np.arange(seeds) < wins, 2.0, 0.5)
            expected = 2 * wins > seeds and binomtest(wins, seeds).pvalue <= SIGNIFICANCE
            assert beats(one, other, 0.0) == sign_test(one.tolist(), other.tolist()) == expected

    def test_eight_seeds_are_the_fewest(self) -> None:
        assert fewest_seeds() == 8
        assert [n for n in range(1, 12) if beats(np.ones(n), np.full(n, 2.0), 0.0)] == [8, 9, 10, 11]

    def test_one_of_two_at_most_beats_the_other(self) -> None:
        random = np.random.default_rng(0)
        seen = set()
        for _ in range(500):
            one, other = (random.choice([0.0, 1e-9, 1.0, 1.0005, 1.01, 2.0, INF], random.integers(1, 15)) for _ in "ab")
            other = np.resize(other + random.choice([0.0, 1.0]), len(one))
            found = beats(one, other, 1e-8), beats(other, one, 1e-8)
            assert all(type(answer) is bool for answer in found)
            seen.add(found)
        assert seen == {(True, False), (False, True), (False, False)}

    def test_random_losses_are_judged_as_by_hand(self) -> None:
        random = np.random.default_rng(1)
        for _ in range(300):
            seeds, floor = int(random.integers(8, 20)), float(random.choice([0.0, 1e-3]))
            one = random.choice([1e-5, 1e-4, 1.0, 1.0001, 1.2, INF], seeds)
            other = random.choice([1e-4, 1.0, 1.0002, 2.0, 3.0, 4.0, INF], seeds)
            pairs = [(max(a, floor), max(b, floor)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
            told = [(a, b) for a, b in pairs if a != b and (INF in (a, b) or abs(a - b) > SAME_LOSS * max(a, b))]
            expected = sign_test([a for a, _ in told], [b for _, b in told]) if told else False
            assert beats(one, other, floor) == expected

    def test_nobody_beats_oneself(self) -> None:
        for losses in (np.ones(20), np.arange(20.0), np.full(20, INF), np.zeros(20)):
            assert not beats(losses, losses, 0.0)

    def test_a_failure_is_worse_than_any_loss(self) -> None:
        assert beats(np.full(8, 1e300), np.full(8, INF), 0.0)
        assert not beats(np.full(8, INF), np.full(8, 1e300), 0.0)

    def test_where_both_failed_a_seed_says_nothing(self) -> None:
        one, other = np.array([1.0] * 7 + [INF]), np.array([2.0] * 7 + [INF])
        assert not beats(one, other, 0.0)
        assert beats(np.append(one, 1.0), np.append(other, 2.0), 0.0)

    def test_below_the_floor_all_are_the_same(self) -> None:
        assert beats(np.full(8, 1e-20), np.full(8, 1e-12), 0.0)
        assert not beats(np.full(8, 1e-20), np.full(8, 1e-12), 1e-12)
        assert beats(np.full(8, 1e-20), np.full(8, 1.1e-12), 1e-12)
        assert not beats(np.zeros(8), np.full(8, 1.0005e-12), 1e-12), "it counts from the floor"

    def test_a_difference_that_nobody_cares_for_is_a_tie(self) -> None:
        assert not beats(np.ones(8), np.full(8, 1 + 0.9 * SAME_LOSS), 0.0)
        assert beats(np.ones(8), np.full(8, 1 + 1.1 * SAME_LOSS), 0.0)

    def test_ties_take_seeds_away(self) -> None:
        one, other = np.ones(9), np.array([2.0] * 7 + [1.0] * 2)
        assert not beats(one, other, 0.0)

    def test_neither_array_is_changed(self) -> None:
        one, other = np.array([1e-9, 1.0] * 4), np.array([1e-12, INF] * 4)
        before = one.copy(), other.copy()
        beats(one, other, 1e-8)
        assert np.array_equal(one, before[0])
        assert np.array_equal(other, before[1])

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_floor_is_what_rounding_alone_can_do(self, loss: str, dtype: torch.dtype) -> None:
        y = torch.tensor([[1.0, -2.0], [30.0, 0.0]], dtype=dtype)
        errors = np.abs(y.double().numpy()) * 4 * torch.finfo(dtype).eps
        by_hand = {
            "sse": (errors**2).sum(),
            "mse": (errors**2).mean(),
            "l1": errors.mean(),
            "huber": (errors**2).mean() / 2,
        }[loss]
        assert rounding_floor(y, loss) == pytest.approx(by_hand, rel=0.3)
        assert rounding_floor(torch.zeros(3, 1), loss) == 0


class TestPlaces:
    """Ranks by what exceeds the spread of seeds."""

    def test_a_clear_order_is_found(self) -> None:
        found = places([placed("c", [3.0] * 8), placed("a", [1.0] * 8), placed("b", [2.0] * 8)], 0.0)
        assert list(found) == ["a", "b", "c"]
        assert [place.rank for place in found.values()] == [1, 2, 3]
        assert found["a"].beats == ("b", "c")
        assert all(place.tied == () for place in found.values())

    def test_what_cannot_be_told_apart_shares_a_rank(self) -> None:
        coin = [1.5, 0.5] * 4
        found = places([placed("a", [1.0] * 8), placed("b", coin), placed("c", [9.0] * 8)], 0.0)
        assert [found[label].rank for label in "abc"] == [1, 1, 3]
        assert (found["a"].tied, found["b"].tied, found["c"].tied) == (("b",), ("a",), ())

    def test_within_a_rank_the_lower_median_is_first(self) -> None:
        found = places([placed("b", [1.0, 1.0, 3.0]), placed("a", [0.5, 2.0, 0.5])], 0.0)
        assert list(found) == ["a", "b"]

    def test_failures_are_last_and_tied(self) -> None:
        found = places([placed("x", [INF] * 8), placed("y", [INF] * 8), placed("a", [1.0] * 8)], 0.0)
        assert [found[label].rank for label in "axy"] == [1, 2, 2]
        assert found["x"].tied == ("y",)

    def test_below_the_floor_all_are_first(self) -> None:
        found = places([placed("a", [1e-20] * 8), placed("b", [1e-15] * 8)], 1e-12)
        assert {place.rank for place in found.values()} == {1}

    def test_random_standings_are_placed_as_by_hand(self) -> None:
        random = np.random.default_rng(2)
        for _ in range(30):
            scales = random.choice([1.0, 1.5, 3.0], 5)
            standings = [placed("abcde"[n], (scale * random.random(9)).tolist()) for n, scale in enumerate(scales)]
            losses = {one.label: one.tuned.losses.tolist() for one in standings}
            wins = {(a, b): sign_test(losses[a], losses[b]) for a, b in permutations(losses, 2)}
            for label, place in places(standings, 0.0).items():
                others = [other for other in losses if other != label]
                assert place.rank == 1 + sum(wins[other, label] for other in others)
                assert set(place.beats) == {other for other in others if wins[label, other]}
                assert set(place.tied) == {o for o in others if not wins[label, o] and not wins[o, label]}


class TestBestOf:
    """What k learning rates in random order would have found."""

    @pytest.mark.parametrize(
        "losses", [[3, 1, 2], [1], [2, 1], [1, 1, 5, INF], [INF, INF, 4], [INF] * 3, [9, 7, 8, 1, 2]]
    )
    def test_it_is_the_median_over_all_choices(self, losses: list[float]) -> None:
        """The lower median where the choices are of an even number."""
        found = best_of(np.array(losses, dtype=np.float64))
        assert len(found) == len(losses)
        for tried, best in enumerate(found.tolist(), 1):
            every = sorted(min(choice) for choice in combinations(losses, tried))
            assert best == every[(len(every) - 1) // 2]

    @pytest.mark.parametrize("count", range(1, 11))
    def test_it_is_the_median_over_all_choices_of_random_losses(self, count: int) -> None:
        losses = np.random.default_rng(count).random(count)
        for tried, best in enumerate(best_of(losses).tolist(), 1):
            every = sorted(min(choice) for choice in combinations(losses.tolist(), tried))
            assert best == every[(len(every) - 1) // 2]

    def test_orders_of_trying_give_the_same(self) -> None:
        losses = [5.0, 3.0, 9.0, 1.0, 4.0]
        for tried, best in enumerate(best_of(np.array(losses)).tolist(), 1):
            every = sorted(min(order[:tried]) for order in permutations(losses))
            assert best == every[(len(every) - 1) // 2]

    @pytest.mark.parametrize("count", [7, 50, 200])
    def test_more_tries_are_never_worse_and_all_find_the_best(self, count: int) -> None:
        losses = np.random.default_rng(count).random(count)
        found = best_of(losses)
        assert (np.diff(found) <= 0).all()
        assert found[-1] == losses.min()
        assert found[0] == np.sort(losses)[(count - 1) // 2]


class TestShuffle:
    """The control that learns nothing."""

    def test_it_asks_for_gradients_and_only_moves_numbers_about(self) -> None:
        network, asked = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), []
        before = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

        def closure() -> torch.Tensor:
            loss = network(torch.ones(5, 3)).sum()
            loss.backward()
            asked.append(loss.item())
            return loss

        optimizer = Shuffle(network.parameters(), lr=5.0)
        losses = [optimizer.step(closure).item() for _ in range(3)]
        after = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        assert losses == asked
        assert len(set(losses)) == 3
        assert not torch.equal(after, before)
        assert torch.equal(after.sort().values, before.sort().values)

    def test_it_shuffles_alike_each_time_and_without_the_common_generator(self) -> None:
        ends = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            weight = nn.Parameter(torch.arange(20.0))
            optimizer = Shuffle([weight])
            for _ in range(3):
                optimizer.step()
            ends.append(weight.tolist())
            assert torch.equal(torch.get_rng_state(), state)
        assert ends[0] == ends[1] != list(range(20))

    def test_groups_are_shuffled_together(self) -> None:
        parameters = [nn.Parameter(torch.full((50,), float(value))) for value in (0, 1)]
        Shuffle([{"params": [parameter]} for parameter in parameters]).step()
        assert 0 < parameters[0].sum().item() < 50


def control_losses(**changes: Sequence[float]) -> list[Standing]:
    """Standings as they must be, but for what is changed."""
    losses = {
        "plain": [2.0] * 8,
        "again": [2.0] * 8,
        "slow": [1.8] * 8,
        "fast": [1.0] * 8,
        "shuffle": [50.0] * 8,
        "other": [3.0] * 8,
    } | changes
    labels = dict(zip(losses, (PLAIN, AGAIN, *MOMENTA, SHUFFLE, "Adam"), strict=True))
    return [placed(labels[name], values) for name, values in losses.items()]


class TestControls:
    """Optimizers whose place is known."""

    def test_they_are_what_their_names_say(self) -> None:
        found = {one.label: one.optimizer for one in controls()}
        assert list(found) == [PLAIN, AGAIN, *MOMENTA, SHUFFLE]
        built = {label: one.build(LinearRegression()) for label, one in found.items()}
        assert [type(one) for one in built.values()] == [*[torch.optim.SGD] * 4, Shuffle]
        assert [built[label].param_groups[0]["momentum"] for label in (PLAIN, AGAIN, *MOMENTA)] == [0, 0, 0.5, 0.9]
        assert {built[label].param_groups[0]["weight_decay"] for label in (PLAIN, AGAIN, *MOMENTA)} == {0}
        assert found[PLAIN] == found[AGAIN]

    @pytest.mark.parametrize("lr", [1e-4, 3.0])
    def test_the_shuffle_takes_a_learning_rate_as_all_do(self, lr: float) -> None:
        (shuffle,) = (one.optimizer for one in controls() if one.label == SHUFFLE)
        assert replace(shuffle, lr=lr).build(LinearRegression()).param_groups[0]["lr"] == lr

    def test_a_comparison_as_it_must_be_has_no_fault(self) -> None:
        assert failed_controls(control_losses(), 0.0) == []

    def test_the_same_failures_under_both_names_are_no_fault(self) -> None:
        losses = [2.0] * 7 + [INF]
        assert failed_controls(control_losses(plain=losses, again=losses), 0.0) == []

    def test_another_loss_under_a_second_name_is_told(self) -> None:
        (fault,) = failed_controls(control_losses(again=[2.0] * 7 + [2.0 + 1e-15]), 0.0)
        assert "second name" in fault

    def test_plain_descent_before_momentum_is_told(self) -> None:
        (fault,) = failed_controls(control_losses(plain=[0.5] * 8, again=[0.5] * 8), 0.0)
        assert "momentum" in fault

    @pytest.mark.parametrize("kept", ["slow", "fast"])
    def test_the_better_of_both_momenta_counts(self, kept: str) -> None:
        spoilt = {"slow": [9.0] * 8, "fast": [9.0] * 8} | {kept: [1.0] * 8}
        assert failed_controls(control_losses(**spoilt), 0.0) == []

    def test_plain_descent_before_momentum_within_the_spread_is_none(self) -> None:
        assert failed_controls(control_losses(plain=[0.5] * 7 + [9.0], again=[0.5] * 7 + [9.0]), 0.0) == []

    def test_plain_descent_below_the_floor_is_none(self) -> None:
        assert failed_controls(control_losses(plain=[0.5] * 8, again=[0.5] * 8), 1.0) == []

    def test_a_shuffle_before_all_is_told(self) -> None:
        (fault,) = failed_controls(control_losses(shuffle=[0.1] * 8), 0.0)
        assert "shuffles the weights" in fault

    def test_nothing_that_works_at_all_is_told(self) -> None:
        failures = dict.fromkeys(("plain", "again", "slow", "fast", "shuffle", "other"), [INF] * 8)
        (fault,) = failed_controls(control_losses(**failures), 0.0)
        assert "shuffles the weights" in fault

    def test_all_faults_are_told_at_once(self) -> None:
        changes = {"plain": [0.5] * 8, "again": [0.6] * 8, "shuffle": [0.1] * 8}
        faults = failed_controls(control_losses(**changes), 0.0)
        assert len(faults) == 3
        assert all("\n" not in fault for fault in faults)


def test_the_constants_are_those_that_the_tests_count_with() -> None:
    assert (comparison.SIGNIFICANCE, comparison.SAME_LOSS, comparison.UNITS_OF_ROUNDING) == (0.01, 1e-3, 4)
