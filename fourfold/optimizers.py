"""Optimizers and schedulers of torch by name, with options read from their constructors' signatures."""

import ast
import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from fourfold.errors import RequestError, first_line


def optimizer_classes() -> dict[str, type[Optimizer]]:
    """Every optimizer that torch.optim offers, by name."""
    return dict(_concrete_subclasses(torch.optim, Optimizer))


def scheduler_classes() -> dict[str, type[LRScheduler]]:
    """Every scheduler that torch.optim.lr_scheduler offers, by name."""
    return dict(_concrete_subclasses(lr_scheduler, LRScheduler))


def default_lr(name: str) -> float:
    """The learning rate that an optimizer's constructor takes where none is given."""
    return float(inspect.signature(optimizer_classes()[name]).parameters["lr"].default)


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer as data.

    Attributes:
        name: as torch.optim spells it.
        lr: learning rate of each parameter that no pattern matches.
        options: further arguments of its constructor.
        lr_for: learning rates by pattern; `*` and `?` as in file names, matched against a parameter's full
            name or the part behind its last dots (`bias` matches `linear.bias`). The first match counts.
    """

    name: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    lr_for: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, lr: float, options: Iterable[str] = (), lr_for: Iterable[str] = ()) -> "OptimizerConfig":
        """Read a request as it is typed: a name in any letter case, `momentum=0.9`, `bias=0.1`.

        Raises:
            RequestError: unknown name or option, a value of another type, a rate that is not positive.
        """
        classes = optimizer_classes()
        known = _find_name("--optimizer", name, classes)
        rates = {}
        for text in lr_for:
            pattern, _, value = text.partition("=")
            if pattern in rates:
                raise RequestError(f"--lr-for {text}: {pattern} is given twice; once is enough")
            try:
                rates[pattern] = float(value)
            except ValueError:
                raise RequestError(f"--lr-for {text}: {value!r} is not a number; give PATTERN=RATE") from None
            if not 0 < rates[pattern] < float("inf"):
                raise RequestError(f"--lr-for {text}: a learning rate is a positive finite number")
        return cls(known, lr, _parse_options("--option", classes[known], options, reserved={"params", "lr"}), rates)

    def build(self, network: nn.Module) -> Optimizer:
        """Make the torch optimizer over the network's trainable parameters, a group for each learning rate.

        Raises:
            RequestError: a pattern that matches no parameter, or what the constructor itself refuses.
        """
        parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        groups: list[dict[str, Any]] = []
        remaining = dict(parameters)
        for pattern, lr in self.lr_for.items():
            matched = [name for name in remaining if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
            if not matched:
                raise RequestError(
                    f"--lr-for {pattern}={lr:g} matches no further parameter; there are {', '.join(parameters)}"
                )
            groups.append({"params": [remaining.pop(name) for name in matched], "lr": lr})
        if remaining:
            groups.insert(0, {"params": list(remaining.values())})
        return self.over(groups)

    def over(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the torch optimizer over parameter groups, `params` and where it differs `lr`.

        Raises:
            RequestError: with what the constructor refuses.
        """
        try:
            return optimizer_classes()[self.name](groups, lr=self.lr, **self.options)  # type: ignore[call-arg]
        except Exception as error:  # torch computes with the options before it looks at them
            raise RequestError(f"{self.name} refuses this request: {first_line(error)}") from error


@dataclass(frozen=True)
class SchedulerConfig:
    """A learning-rate scheduler as data, stepped once an epoch."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str, options: Iterable[str] = ()) -> "SchedulerConfig":
        """Read a request as it is typed; raises RequestError as `OptimizerConfig.parse` does."""
        classes = scheduler_classes()
        known = _find_name("--scheduler", name, classes)
        return cls(known, _parse_options("--scheduler-option", classes[known], options, reserved={"optimizer"}))

    def build(self, optimizer: Optimizer) -> LRScheduler:
        """Make the torch scheduler; raises RequestError with what its constructor refuses."""
        try:
            return scheduler_classes()[self.name](optimizer, **self.options)
        except Exception as error:  # torch computes with the options before it looks at them
            raise RequestError(f"{self.name} refuses this request: {first_line(error)}") from error


def _concrete_subclasses(module: Any, base: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if inspect.isclass(value) and issubclass(value, base) and value is not base and name[0] != "_":
            yield name, value


def _find_name(option: str, name: str, known: Mapping[str, Any]) -> str:
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    if name.lower() in by_lower_case:
        return by_lower_case[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    advice = f"did you mean {' or '.join(by_lower_case[match] for match in near)}?" if near else "choose one of "
    raise RequestError(f"{option} {name} is unknown; {advice}{'' if near else ', '.join(sorted(known))}")


# torch imports these for type checkers only; a sequence, since an iterable would be checked when it is used up.
_ANNOTATIONS = {"Callable": Callable, "Iterable": Sequence, "Sequence": Sequence}


def _parse_options(flag: str, constructor: type, texts: Iterable[str], reserved: set[str]) -> dict[str, Any]:
    signature = inspect.signature(constructor)
    hints = typing.get_type_hints(constructor.__init__, localns=_ANNOTATIONS)  # type: ignore[misc]
    names = [name for name in signature.parameters if name not in reserved]
    options = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name == "lr" and "lr" in reserved:
            raise RequestError(f"{flag} {text}: the learning rate is given by --lr")
        if name not in names:
            raise RequestError(f"{flag} {text}: {constructor.__name__} has no option {name}; it has {', '.join(names)}")
        if name in options:
            raise RequestError(f"{flag} {text}: {name} is given twice; once is enough")
        options[name] = _convert(flag, text, value, hints.get(name, Any))
    required = [
        name for name in names if signature.parameters[name].default is inspect.Parameter.empty and name not in options
    ]
    if required:
        raise RequestError(f"{constructor.__name__} needs {' and '.join(f'{flag} {name}=...' for name in required)}")
    return options


_STRICT_NUMBERS = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
_SPELLINGS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", type(None): "none"}


def _convert(flag: str, text: str, value: str, hint: Any) -> Any:
    try:
        literal = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of brackets in brackets
        literal = value
    try:
        converted = TypeAdapter(hint, config=_STRICT_NUMBERS).validate_python(literal)
    except (ValidationError, OverflowError):
        raise RequestError(f"{flag} {text}: {value!r} is not {_spell(hint)}") from None
    return converted


def _spell(hint: Any) -> str:
    """A type as a person writes it, without the tensors that torch admits beside numbers."""
    if typing.get_origin(hint) is tuple:
        return f"{len(typing.get_args(hint))} values separated by commas"
    arguments = [argument for argument in typing.get_args(hint) if argument is not Tensor] or [hint]
    return " or ".join(_SPELLINGS.get(argument, str(argument)) for argument in arguments)
