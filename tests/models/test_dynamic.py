"""The network whose forward is random while it learns."""

import numpy as np
import pytest
import torch

from models.dynamic import DynamicPolynomial


@pytest.fixture
def network() -> DynamicPolynomial:
    torch.manual_seed(0)
    return DynamicPolynomial().double()


def test_in_evaluation_mode_it_is_the_whole_polynomial(network: DynamicPolynomial) -> None:
    a, b, c, d, e = (value.item() for value in network.parameters())
    x = np.linspace(-3, 3, 13)
    expected = np.polynomial.polynomial.polyval(x, [a, b, c, d, e, e])
    found = network.eval()(torch.tensor(x)[:, None]).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_while_it_learns_it_ends_at_the_third_fourth_or_fifth_order(network: DynamicPolynomial) -> None:
    a, b, c, d, e = (value.item() for value in network.parameters())
    torch.manual_seed(1)
    x = torch.tensor([[2.0]]).double()
    found = {round(network.train()(x).item(), 9) for _ in range(60)}
    cubic = a + 2 * b + 4 * c + 8 * d
    assert found == {round(cubic + more, 9) for more in (0, 16 * e, 48 * e)}


def test_its_draws_are_those_of_torchs_generator(network: DynamicPolynomial) -> None:
    def drawn() -> list[float]:
        torch.manual_seed(7)
        return [network.train()(torch.tensor([[2.0]]).double()).item() for _ in range(20)]

    assert drawn() == drawn()


def test_the_last_coefficient_serves_two_orders(network: DynamicPolynomial) -> None:
    network.eval()(torch.tensor([[2.0]]).double()).backward()
    assert network.e.grad is not None
    assert network.e.grad.item() == 2**4 + 2**5
