"""Step 2: the network, and the rows as its trained part sees them."""

import copy
import importlib
import inspect
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.batches import Batches, StreamedBatches
from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import RequestError, first_line
from fourfold.fitting import History
from fourfold.least_squares import LeastSquares, condition_number, least_squares
from fourfold.streams import TRAINING, Stream
from models.dynamic import DynamicPolynomial
from models.filled import Filled
from models.legendre import Legendre
from models.linear import LinearRegression
from models.mlp import MultilayerPerceptron
from models.polynomial import ChebyshevPolynomial, Polynomial
from models.standardize import Standardized
from tasks.steps import step


@dataclass(frozen=True)
class BuiltModel:
    """A network before its training.

    Attributes:
        network: raw (rows, features) to raw (rows, targets); what is evaluated and exported.
        core: the part that is trained: the network itself, or what stands inside its filling and scaling.
        x, y: the training rows as the core sees them, on its device; a sample of a stream's.
        stream: where the rows stay on disk.
    """

    network: nn.Module
    core: nn.Module
    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    targets: tuple[str, ...]
    stream: Stream | None = None

    def batches(self, size: int | None, seed: int) -> Batches | StreamedBatches:
        """The training rows as a fit takes them, in an order that the seed decides."""
        if self.stream is None:
            return Batches(self.x, self.y, size, seed)
        assert size is not None, "rows on disk are never one batch"
        stream, network, device = self.stream, self.network, self.x.device
        return StreamedBatches(
            stream.shuffled,
            lambda: ((x, y) for part, x, y in stream.chunks() if part == TRAINING),
            lambda x, y: as_seen(network, x.to(device), y.to(device)),
            self.y, stream.count(TRAINING), size, seed,
        )  # fmt: skip

    @property
    def is_linear(self) -> bool:
        """Whether the network is linear in coefficients that least squares can be compared with."""
        return isinstance(self.core, LinearRegression)

    @property
    def is_line(self) -> bool:
        """Whether it is y = w x + b."""
        one_each = len(self.features) == len(self.targets) == 1
        core = self.core
        return one_each and isinstance(core, LinearRegression) and core.symbols == ("w",) and core.has_intercept

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (targets, columns) and intercepts (targets,) now, float64, in the user's units; without a b 0."""
        assert isinstance(self.core, LinearRegression), "only a linear network has them"
        return self.flat_in_raw_units(torch.cat([p.detach().cpu().double().flatten() for p in self.core.parameters()]))

    def curves(self, history: History) -> dict[str, np.ndarray]:
        """The parameters' curves by name: w and b in the user's units, or each parameter of another network."""
        if not self.is_linear or history.columns[0].startswith("norm/"):
            return dict(zip(history.columns, history.values.T, strict=True))
        return self.named(*self.flat_in_raw_units(torch.from_numpy(history.values)))

    def parameters(self, history: History) -> dict[str, float]:
        """The last point of each of those curves."""
        last = replace(history, values=history.values[-1:])
        return {name: float(value) for name, (value,) in self.curves(last).items()}

    def in_raw_units(self, weights: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of a linear core, (..., targets, columns) and (..., targets), in the user's units."""
        scaling = scaling_of(self.network)
        return scaling.cpu().raw_coefficients(weights, intercepts) if scaling else (weights, intercepts)

    def flat_in_raw_units(self, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The same from flat parameters, (..., parameters), as they stand in the core."""
        assert isinstance(self.core, LinearRegression), "only a linear network has them"
        targets, weights = len(self.targets), self.core.linear.weight
        flat, intercepts = values[..., : weights.numel()], values[..., weights.numel() :]
        if not self.core.has_intercept:
            intercepts = values.new_zeros(*values.shape[:-1], targets)
        w, b = self.in_raw_units(flat.reshape(*values.shape[:-1], *weights.shape), intercepts)
        return w.numpy(), b.numpy()

    def condition_number(self) -> float:
        """Of the columns that the core's coefficients multiply, as it sees them, that of the intercept included.

        Directions that decorrelating has dropped do not count: no coefficient depends on them.
        """
        assert isinstance(self.core, LinearRegression), "only a linear network has such columns"
        columns = self.core.columns(self.x).cpu().double().numpy()
        scaling = scaling_of(self.network)
        if scaling and scaling.x_rotation is not None:
            columns = columns[:, scaling.x_rotation.any(dim=0).cpu().numpy()]
        return condition_number(columns, intercept=self.core.has_intercept)

    def exact(self, data: Dataset) -> LeastSquares:
        """What least squares gives for the training rows, in the user's units.

        Solved in float64 in the units that the core sees, since a basis may depend on them.
        """
        network = copy.deepcopy(self.network).cpu().double()
        scaling, core = scaling_of(network), core_of(network)
        assert isinstance(core, LinearRegression), "others have no such answer"
        x, y = as_seen(network, data.x.double(), data.y.double())
        columns = core.columns(x)
        solved = least_squares(columns.numpy(), y.numpy(), intercept=core.has_intercept)
        weights, intercepts = torch.from_numpy(solved.weights), torch.from_numpy(solved.intercepts)
        left = y - (columns @ weights.T + intercepts)
        if scaling:
            left = left * scaling.y_deviation
        w, b = self.in_raw_units(weights, intercepts)
        return LeastSquares(w.numpy(), b.numpy(), float((left**2).sum()))

    def named(self, w: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """Coefficients (..., targets, columns) and (..., targets) by name: `w` and `b`, `w/area`, `c2/price/area`."""
        assert isinstance(self.core, LinearRegression), "only a linear network has them"
        constant = self.core.constant if self.core.has_intercept else None
        return named_coefficients(w, b, self.features, self.targets, self.core.symbols, constant)


def named_coefficients(
    w: np.ndarray,
    b: np.ndarray,
    features: tuple[str, ...],
    targets: tuple[str, ...],
    symbols: tuple[str, ...],
    constant: str | None,
) -> dict[str, np.ndarray]:
    """Take w (..., targets, features * symbols) and b (..., targets) apart; without a name for it b is left out."""

    def name(symbol: str, *parts: str) -> str:
        return "/".join((symbol, *(part for part in parts if part)))

    target_names = targets if len(targets) > 1 else ("",)
    feature_names = features if len(features) > 1 else ("",)
    named = {
        name(symbol, target, feature): w[..., i, j * len(symbols) + k]
        for i, target in enumerate(target_names)
        for j, feature in enumerate(feature_names)
        for k, symbol in enumerate(symbols)
    }
    intercepts = {name(constant, target): b[..., i] for i, target in enumerate(target_names)} if constant else {}
    return named | intercepts


def build(config: TrainConfig, data: Dataset) -> BuiltModel:
    """Make the network whose first weights the seed decides; raises RequestError where it cannot be made."""
    _check_options(config)
    device = _device(config)
    torch.manual_seed(config.seed)
    random.seed(config.seed)  # for networks of the user's own that draw from it
    # Drawn in float32 and then widened, so that both dtypes start from the same weights.
    try:
        core = _core(config, len(data.features), len(data.targets)).to(data.x.dtype)
    except (RuntimeError, MemoryError) as error:  # torch's own of a size that it cannot allocate
        raise RequestError(
            f"--model {config.model} of this size does not fit into memory ({first_line(error)}); make it smaller"
        ) from error
    network = core
    if config.standardizes:
        moments = (torch.from_numpy(moment) for one in data.profile for moment in (one.mean, one.deviation))
        covariance = data.covariance() if config.decorrelate else None
        network = Standardized.to_moments(
            core, *moments, dtype=data.x.dtype, centred=config.intercept, x_covariance=covariance
        )
    if data.missing == "mean":
        network = Filled(network, torch.from_numpy(data.profile[0].mean).to(data.x.dtype))
    network.to(device)
    x, y = as_seen(network, data.x.to(device), data.y.to(device))
    if isinstance(core, ChebyshevPolynomial):
        ends = np.stack([data.profile[0].low, data.profile[0].high])
        core.set_range(as_seen(network, torch.from_numpy(ends).to(x), y[:2])[0])
    _check_shape(core, x, y, config.model)
    set_start(core, config.start)  # last, when a lazy network has its parameters
    return BuiltModel(network, core, x, y, data.features, data.targets, data.stream)


def scaling_of(network: nn.Module) -> Standardized | None:
    """The part of a network that scales, where it has one."""
    inner = network.network if isinstance(network, Filled) else network
    return inner if isinstance(inner, Standardized) else None


def core_of(network: nn.Module) -> nn.Module:
    """The part of a network that is trained."""
    inner = network.network if isinstance(network, Filled) else network
    return inner.core if isinstance(inner, Standardized) else inner


def as_seen(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows as the trained part of a network sees them: filled and scaled, where it does so inside."""
    if isinstance(network, Filled):
        x = network.fill(x)
    if scaling := scaling_of(network):
        return scaling.scale_features(x), scaling.scale_targets(y)
    return x, y


@step(name="build model")
def build_model(config: TrainConfig, data: Dataset) -> BuiltModel:
    """Give the network with its first weights."""
    return build(config, data)


def set_start(network: nn.Module, assignments: Sequence[str]) -> None:
    """Give parameters the values of `b1=500` or `linear.weight=1,2`: one for all elements, or each in row-major order.

    Raises:
        RequestError: no parameter, or several, of that name, one that was given twice, or values that do not fit.
    """
    parameters = dict(network.named_parameters())
    given: set[str] = set()
    for text in assignments:
        name, _, values = text.partition("=")
        matched = [name] if name in parameters else [one for one in parameters if one.rpartition(".")[2] == name]
        if len(matched) != 1:
            fault = f"could be {' or '.join(matched)}" if matched else "is no parameter of this model"
            raise RequestError(
                f"--start {text}: {name} {fault}; there are {', '.join(map(_described, parameters.items()))}"
            )
        (found,) = matched
        if found in given:
            raise RequestError(f"--start {text}: {found} is given twice; once is enough")
        given.add(found)
        parameter = parameters[found]
        try:
            numbers = torch.tensor([float(value) for value in values.split(",")], dtype=torch.float64)
        except ValueError:
            raise RequestError(f"--start {text}: {values!r} is not a number, or several separated by commas") from None
        if not numbers.to(parameter.dtype).isfinite().all():
            raise RequestError(f"--start {text}: each value must be a finite number in {parameter.dtype}")
        if len(numbers) not in (1, parameter.numel()):
            raise RequestError(
                f"--start {text}: {len(numbers)} values for {_described((found, parameter))}; give one for all, or "
                f"{parameter.numel()}"
            )
        with torch.no_grad():
            parameter.copy_((numbers if len(numbers) > 1 else numbers.expand(parameter.numel())).view(parameter.shape))


def _described(named: tuple[str, nn.Parameter]) -> str:
    name, parameter = named
    return f"{name} {tuple(parameter.shape)}" if parameter.dim() else name


def _check_options(config: TrainConfig) -> None:
    """Refuse what cannot be asked for together."""
    is_powers = config.model == "polynomial" and config.basis == "power"
    if not config.intercept and config.model != "linear" and not is_powers:
        basis = " --basis chebyshev" if config.model == "polynomial" else ""
        raise RequestError(
            f"--no-intercept is for --model linear, and for --model polynomial with --basis power; --model "
            f"{config.model}{basis} was given"
        )
    if config.decorrelate and config.model in ("polynomial", "legendre", "dynamic"):
        raise RequestError(
            f"--decorrelate is for models of several features; --model {config.model} takes functions of each one "
            "alone: leave it out, or take --basis chebyshev for a polynomial"
        )
    if config.decorrelate and not config.standardizes:
        raise RequestError(
            "--decorrelate rotates standardised features, and nothing is standardised; add --standardize"
        )


def _core(config: TrainConfig, in_features: int, out_features: int) -> nn.Module:
    match config.model:
        case "linear":
            return LinearRegression(in_features, out_features, intercept=config.intercept)
        case "mlp":
            return MultilayerPerceptron(in_features, out_features, config.hidden, config.activation)
        case "polynomial":
            if config.basis == "chebyshev":
                return ChebyshevPolynomial(in_features, out_features, config.degree)
            return Polynomial(in_features, out_features, config.degree, intercept=config.intercept)
        case "legendre" | "dynamic":
            if (in_features, out_features) != (1, 1):
                raise RequestError(
                    f"--model {config.model} takes one feature and one target; the data have {in_features} and "
                    f"{out_features}: choose one by --features, or take --model polynomial"
                )
            return Legendre() if config.model == "legendre" else DynamicPolynomial()
    return _users_own(config.model, {"in_features": in_features, "out_features": out_features})


def _users_own(address: str, sizes: dict[str, int]) -> nn.Module:
    """Import `module:Class`, the working directory included, and make one, with the sizes it takes."""
    module_name, _, class_name = address.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        made: Any = getattr(importlib.import_module(module_name), class_name)
        takes = inspect.signature(made).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
        names = {parameter.name for parameter in takes}
        network = made(**{name: size for name, size in sizes.items() if takes_any or name in names})
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and a script may end
        raise RequestError(
            f"--model {address} cannot be made: {type(error).__name__}: {first_line(error)}; give module:Class of a "
            "torch.nn.Module that can be imported from here"
        ) from error
    if not isinstance(network, nn.Module):
        raise RequestError(f"--model {address} makes a {type(network).__name__}; it must be a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RequestError(f"--model {address} has no parameter that could be trained")
    return network


def _check_shape(core: nn.Module, x: Tensor, y: Tensor, address: str) -> None:
    # A prediction (rows,) against a target (rows, 1) would broadcast, and sum rows x rows differences.
    core.eval()
    try:
        with torch.no_grad():
            prediction = core(x[:2])
    except Exception as error:  # a user's network may raise anything
        raise RequestError(
            f"--model {address} cannot take rows of {x.shape[1]} features: {first_line(error)}"
        ) from error
    if not isinstance(prediction, Tensor) or prediction.shape != y[:2].shape or prediction.dtype != y.dtype:
        given = f"{tuple(prediction.shape)} {prediction.dtype}" if isinstance(prediction, Tensor) else type(prediction)
        raise RequestError(f"--model {address} gives {given} for two rows; it must give {tuple(y[:2].shape)} {y.dtype}")


def _device(config: TrainConfig) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device == "auto":
        if config.dtype == "float64":
            available["mps"] = False
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[config.device]:
        there = ", ".join(name for name, present in available.items() if present)
        raise RequestError(f"--device {config.device} is not available; this machine has {there}")
    if config.device == "mps" and config.dtype == "float64":
        raise RequestError("--device mps has no float64; use --dtype float32 or --device cpu")
    return torch.device(config.device)
