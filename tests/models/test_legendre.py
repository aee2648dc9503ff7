"""The network with a backward of its own, against autograd and against SciPy."""

import numpy as np
import torch
from scipy.special import eval_legendre
from torch.autograd import gradcheck, gradgradcheck

from models.legendre import Legendre, LegendreP3


def test_its_backward_is_the_derivative_of_its_forward() -> None:
    z = torch.linspace(-2, 2, 21, dtype=torch.float64, requires_grad=True)
    assert gradcheck(LegendreP3.apply, (z,))
    assert gradgradcheck(LegendreP3.apply, (z,))


def test_its_backward_gives_what_autograd_gives() -> None:
    z = torch.linspace(-3, 3, 50, dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(1, 2, 50, dtype=torch.float64)
    (own,) = torch.autograd.grad((LegendreP3.apply(z) * weights).sum(), z)
    (torchs,) = torch.autograd.grad(((5 * z**3 - 3 * z) / 2 * weights).sum(), z)
    torch.testing.assert_close(own, torchs, rtol=1e-14, atol=1e-14)


def test_its_forward_is_the_third_legendre_polynomial() -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    np.testing.assert_allclose(LegendreP3.apply(z).numpy(), eval_legendre(3, z.numpy()), rtol=1e-13, atol=1e-14)


def test_the_network_starts_where_the_tutorial_does() -> None:
    network = Legendre().double()
    assert [round(value.item(), 6) for value in network.parameters()] == [0, -1, 0, 0.3]
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    expected = -eval_legendre(3, network.d.item() * x.numpy())
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-13, atol=1e-14)
