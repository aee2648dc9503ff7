"""Requests as they are typed, against torch's own classes and their signatures."""

import inspect

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from fourfold.errors import RequestError
from fourfold.optimizers import OptimizerConfig, SchedulerConfig, optimizer_classes, scheduler_classes
from models.linear import LinearRegression


def offered(module: object, base: type) -> dict[str, type]:
    """What torch itself exports of a kind."""
    candidates = {name: getattr(module, name) for name in module.__all__}  # type: ignore[attr-defined]
    return {
        name: value
        for name, value in candidates.items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }


OPTIMIZERS, SCHEDULERS = offered(torch.optim, Optimizer), offered(lr_scheduler, LRScheduler)


def parse(name: str, *options: str, lr_for: tuple[str, ...] = ()) -> OptimizerConfig:
    return OptimizerConfig.parse(name, 0.01, options, lr_for)


def schedule(name: str, *options: str) -> LRScheduler:
    """A scheduler over one parameter at rate 0.01."""
    return SchedulerConfig.parse(name, options).build(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01))


def test_the_optimizers_are_those_of_torch() -> None:
    assert optimizer_classes() == OPTIMIZERS


def test_the_schedulers_are_those_of_torch() -> None:
    assert scheduler_classes() == SCHEDULERS


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper, str.swapcase])
def test_a_name_is_known_in_any_letter_case(name: str, spelling: type[str]) -> None:
    assert parse(spelling(name)).name == name


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) & {"ReduceLROnPlateau", "PolynomialLR", "ConstantLR"}))
def test_a_schedulers_name_is_known_in_any_letter_case(name: str) -> None:
    assert SchedulerConfig.parse(name.upper()).name == name


@pytest.mark.parametrize(
    ("typed", "meant"), [("adamm", "Adam"), ("sgdd", "SGD"), ("lbgfs", "LBFGS"), ("RMS_prop", "RMSprop")]
)
def test_near_names_are_suggested(typed: str, meant: str) -> None:
    with pytest.raises(RequestError, match=rf"--optimizer {typed} is unknown; did you mean .*\b{meant}\b.*\?"):
        parse(typed)


def test_a_name_that_is_near_to_none_lists_all() -> None:
    with pytest.raises(RequestError, match="is unknown; choose one of " + ", ".join(sorted(OPTIMIZERS))):
        parse("zzzzz")


def test_a_schedulers_near_name_is_suggested() -> None:
    with pytest.raises(RequestError, match=r"--scheduler StepLRR is unknown; did you mean .*\bStepLR\b"):
        SchedulerConfig.parse("StepLRR")


def test_an_unknown_option_lists_those_that_exist() -> None:
    expected = [name for name in inspect.signature(torch.optim.SGD).parameters if name not in ("params", "lr")]
    with pytest.raises(RequestError, match=f"SGD has no option momentm; it has {', '.join(expected)}"):
        parse("SGD", "momentm=0.9")


def test_the_parameters_are_no_option() -> None:
    with pytest.raises(RequestError, match="has no option params"):
        parse("SGD", "params=1")


def test_the_learning_rate_has_its_own_place() -> None:
    with pytest.raises(RequestError, match=r"--option lr=0\.1: the learning rate is given by --lr"):
        parse("SGD", "lr=0.1")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("SGD", "momentum=0.9", 0.9),
        ("SGD", "momentum=1", 1.0),
        ("SGD", "momentum=1e-3", 1e-3),
        ("SGD", "weight_decay=-0.5", -0.5),
        ("SGD", "nesterov=true", True),
        ("SGD", "nesterov=True", True),
        ("SGD", "nesterov=FALSE", False),
        ("SGD", "foreach=none", None),
        ("Adam", "betas=0.8,0.99", (0.8, 0.99)),
        ("Adam", "betas=(0.8, 0.99)", (0.8, 0.99)),
        ("Rprop", "etas=0.5,1.5", (0.5, 1.5)),
        ("LBFGS", "max_iter=5", 5),
        ("LBFGS", "max_eval=none", None),
        ("LBFGS", "line_search_fn=strong_wolfe", "strong_wolfe"),
    ],
)
def test_a_value_takes_the_type_that_torch_annotates(name: str, option: str, value: object) -> None:
    (converted,) = parse(name, option).options.values()
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "option", "allowed"),
    [
        ("SGD", "momentum=much", "a finite number"),
        ("SGD", "momentum=", "a finite number"),
        ("SGD", "momentum=nan", "a finite number"),
        ("SGD", "momentum=inf", "a finite number"),
        ("SGD", "momentum=1e999", "a finite number"),
        ("SGD", "nesterov=maybe", "true or false"),
        ("LBFGS", "max_iter=1.5", "a whole number"),
        ("LBFGS", "max_eval=soon", "a whole number or none"),
        ("LBFGS", "line_search_fn=3", "a text or none"),
        ("Adam", "betas=0.9", "2 values separated by commas"),
        ("Adam", "betas=0.9,0.99,0.999", "2 values separated by commas"),
        ("Adam", "betas=0.9,nan", "2 values separated by commas"),
        ("Adam", "betas=(0.9,1e999)", "2 values separated by commas"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, option: str, allowed: str) -> None:
    with pytest.raises(RequestError, match=rf"--option .*: '.*' is not {allowed}$"):
        parse(name, option)


def test_what_is_parsed_is_what_torch_is_given() -> None:
    optimizer = parse("adam", "betas=0.8,0.99", "amsgrad=true").build(LinearRegression())
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["amsgrad"]) == (0.01, (0.8, 0.99), True)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("Adam", ("betas=2,3",), "Invalid beta parameter at index 0: 2.0"),
        ("SGD", ("nesterov=true",), "Nesterov momentum requires a momentum and zero dampening"),
        ("Muon", (), "only supports 2D parameters"),
    ],
)
def test_what_torch_refuses_is_passed_on_in_its_words(name: str, options: tuple[str, ...], reason: str) -> None:
    with pytest.raises(RequestError, match=f"^{name} refuses this request: .*{reason}"):
        parse(name, *options).build(LinearRegression())


def test_each_pattern_makes_a_group_with_its_own_rate() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = parse("SGD", lr_for=("0.*=0.1", "bias=0.2")).build(network)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert {name: rates[id(value)] for name, value in network.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.1,  # the first match counts
        "1.weight": 0.01,
        "1.bias": 0.2,
        "2.weight": 0.01,
        "2.bias": 0.2,
    }
    assert optimizer.param_groups[0]["lr"] == 0.01, "the first group is that of the general rate"


def test_patterns_may_take_every_parameter() -> None:
    optimizer = parse("SGD", lr_for=("*=0.5",)).build(LinearRegression())
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 2)]


def test_a_frozen_parameter_is_left_out() -> None:
    network = LinearRegression()
    network.linear.bias.requires_grad_(False)
    (group,) = parse("SGD").build(network).param_groups
    assert [id(value) for value in group["params"]] == [id(network.linear.weight)]


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (("bais=0.1",), "bais=0.1 matches no further parameter; there are linear.weight, linear.bias"),
        (("bias=0.1", "*.bias=0.2"), r"\*\.bias=0.2 matches no further parameter"),
        (("bias=fast",), "'fast' is not a number; give PATTERN=RATE"),
        (("bias=0",), "a learning rate is a positive finite number"),
        (("bias=-1",), "a learning rate is a positive finite number"),
        (("bias=nan",), "a learning rate is a positive finite number"),
        (("bias=inf",), "a learning rate is a positive finite number"),
    ],
)
def test_a_pattern_or_rate_that_makes_no_sense_is_refused(patterns: tuple[str, ...], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse("SGD", lr_for=patterns).build(LinearRegression())


def test_lbfgs_takes_one_rate_only() -> None:
    with pytest.raises(RequestError, match="LBFGS doesn't support per-parameter options"):
        parse("LBFGS", lr_for=("bias=0.1",)).build(LinearRegression())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_required_options_of_a_scheduler_are_named(name: str) -> None:
    required = [
        option
        for option, parameter in inspect.signature(SCHEDULERS[name]).parameters.items()
        if option != "optimizer" and parameter.default is parameter.empty
    ]
    if not required:
        assert SchedulerConfig.parse(name).options == {}
        return
    named = " and ".join(f"--scheduler-option {option}=..." for option in required)
    with pytest.raises(RequestError, match=f"{name} needs {named}"):
        SchedulerConfig.parse(name)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("StepLR", ("step_size=soon",), "--scheduler-option step_size=soon: 'soon' is not a whole number"),
        ("StepLR", ("step_size=3", "gama=1"), "StepLR has no option gama; it has step_size, gamma, last_epoch"),
        ("ReduceLROnPlateau", ("mode=low",), "'low' is not min or max"),
        ("LambdaLR", ("lr_lambda=half",), "LambdaLR refuses this request: 'str' object is not callable|'half' is not"),
        ("ChainedScheduler", ("schedulers=StepLR",), "ChainedScheduler refuses this request|'StepLR' is not"),
        # torch annotates this one with names that only type checkers know.
        ("MultiStepLR", ("milestones=2,4", "gamma=half"), "gamma=half: 'half' is not a finite number"),
        ("MultiStepLR", ("milestones=2,4", "gamma=nan"), "gamma=nan: 'nan' is not a finite number"),
        ("MultiStepLR", ("milestones=a,b",), "milestones=a,b: 'a,b' is not"),
        ("MultiStepLR", ("milestones=2.5,4",), "milestones=2.5,4: '2.5,4' is not"),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(name: str, options: tuple[str, ...], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        schedule(name, *options)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("StepLR", ("step_size=3", "gamma=0.5"), {"step_size": 3, "gamma": 0.5}),
        ("MultiStepLR", ("milestones=2,4",), {"milestones": {2: 1, 4: 1}}),
        ("CosineAnnealingLR", ("T_max=10", "eta_min=0.001"), {"T_max": 10, "eta_min": 0.001}),
        ("ReduceLROnPlateau", ("mode=max", "patience=3"), {"mode": "max", "patience": 3}),
    ],
)
def test_a_scheduler_gets_its_options(name: str, options: tuple[str, ...], kind: dict[str, object]) -> None:
    scheduler = schedule(name, *options)
    assert type(scheduler) is SCHEDULERS[name]
    assert {key: getattr(scheduler, key) for key in kind} == kind


def test_a_request_can_be_built_from_twice() -> None:
    """The trial and the fit build from the same data."""
    config = SchedulerConfig.parse("MultiStepLR", ("milestones=2,4",))
    for _ in range(2):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        assert config.build(optimizer).milestones == {2: 1, 4: 1}  # type: ignore[attr-defined]
