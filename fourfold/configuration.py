"""The one list of options of each flow.

The command line, Prefect's parameter form, MLflow's parameters and the tables in docs/options.md all come from here.
It holds what can be judged without torch or the data; the rest is judged where it is used.
"""

import re
import zoneinfo
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from cyclopts import Group, Parameter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

DATA = Parameter(group=Group("Data", sort_key=1))
MODEL = Parameter(group=Group("Model", sort_key=2))
FIT = Parameter(group=Group("Fit", sort_key=3))
RESULT = Parameter(group=Group("Result", sort_key=4))
RUN = Parameter(group=Group("Run", sort_key=5))


def _split_commas(value: Any) -> Any:
    """Make `"32,32"`, and a list that holds such texts, a flat list of texts."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        return value
    return [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part]) if piece != ""]


def _split_names(value: Any) -> Any:
    """Make `"SGD,Adam:betas=0.9,0.99"`, and a list that holds such texts, a flat list: commas before a name divide."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        return value
    return [piece.strip() for part in parts for piece in re.split(r",(?=\s*[A-Za-z]|\s*$)", part) if piece.strip()]


def _rows(value: Any) -> Any:
    """Make `4`, `"4"`, `"1,2"` and lists of them a list of rows."""
    rows = [value] if isinstance(value, (str, int, float)) else value
    if not isinstance(rows, (list, tuple)):
        return value
    return [row.split(",") if isinstance(row, str) else [row] if isinstance(row, (int, float)) else row for row in rows]


def _like(pattern: str, advice: str) -> AfterValidator:
    """Refuse a text that is not like `pattern`, with advice instead of the pattern itself."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"should be {advice}")
        return value

    return AfterValidator(check)


def _whose_work(value: Any) -> Any:
    """Read how many processes, or whose cluster; anything else is refused with what is allowed."""
    text = str(value)
    if value is None or (re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= MOST_PROCESSES):
        return value if value is None else int(text)
    if re.fullmatch(_CLUSTER, text):
        return text
    raise ValueError(f"should be a number from 1 to {MOST_PROCESSES}, dask, or dask://HOST:PORT")


MOST_PROCESSES = 256
_CLUSTER = r"^dask(://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5})?$"
# Both kinds with their bounds, for Prefect's form; what is wrong is told by the function in front of them.
Workers = Annotated[
    Annotated[int, Field(ge=1, le=MOST_PROCESSES)] | Annotated[str, Field(pattern=_CLUSTER)] | None,
    BeforeValidator(_whose_work),
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_split_commas)]
# What MLflow does not take in the name of a registered model; what turns the direction of text; what no text holds.
_NOT_IN_A_NAME = r"/:.%\"'\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
LONGEST_NAME = 250  # MLflow keeps 256 characters
# `--option betas=0.9,0.99` must stay whole, so these are not split at commas.
Assignments = tuple[Annotated[str, _like(r"[^=\s]+=.+", "NAME=VALUE")], ...]


class FlowConfig(BaseModel, ABC):
    """What every flow's request has."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    examples: ClassVar[tuple[str, ...]]  # of its options, for --help

    @property
    @abstractmethod
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the result, by option."""
        return self.model_dump()


BUILT_IN = ("line", "sine")
MODELS = ("linear", "mlp", "polynomial", "legendre", "dynamic")
LossName = Literal["sse", "mse", "l1", "huber"]


class ProblemConfig(FlowConfig):
    """What is learned from which rows by which network: the part that trainings may share."""

    data: Annotated[
        str,
        DATA,
        Field(
            min_length=1,
            description="line (3 points of y = 2x), sine (2,000 points), or a .csv or .parquet file",
        ),
    ] = "line"
    target: Annotated[Names, DATA, Field(description="column to predict, for a file; repeat it for several")] = ()
    features: Annotated[
        Names,
        DATA,
        Field(description="columns to predict from, for a file (default: all others)"),
    ] = ()
    missing: Annotated[
        Literal["error", "drop", "mean"],
        DATA,
        Field(
            description="what to do where values are missing: refuse the file (error), leave out those rows (drop), or "
            "fill features with their training mean inside the network (mean)"
        ),
    ] = "error"
    test_fraction: Annotated[
        float | None,
        DATA,
        Field(
            ge=0,
            lt=1,
            description="share of rows held out, below 1, chosen by the seed (default: 0.2 for a file, else 0)",
        ),
    ] = None
    validation_fraction: Annotated[
        float | None,
        DATA,
        Field(
            ge=0,
            lt=1,
            description="share of rows kept aside, below 1, to choose between trainings (default: 0, and 0.2 of a file "
            "where several are compared)",
        ),
    ] = None
    standardize: Annotated[
        bool | None,
        DATA,
        Field(
            description="scale features and target inside the network (default: for a file, unless start values are "
            "given)"
        ),
    ] = None
    decorrelate: Annotated[
        bool,
        Parameter(negative=(), group=DATA.group),
        Field(description="rotate standardised features to uncorrelated ones inside the network (linear, mlp, yours)"),
    ] = False

    model: Annotated[
        str,
        MODEL,
        _like(rf"{'|'.join(MODELS)}|[\w.]+:\w+", f"{', '.join(MODELS)}, or a class of yours as module:Class"),
        Field(description=f"{', '.join(MODELS)}, or a class of yours as module:Class"),
    ] = "linear"
    degree: Annotated[int, MODEL, Field(ge=1, le=100, description="highest power of the polynomial, 1 to 100")] = 3
    basis: Annotated[
        Literal["power", "chebyshev"],
        MODEL,
        Field(description="what the polynomial is a sum of: powers, or Chebyshev polynomials on the training range"),
    ] = "power"
    intercept: Annotated[
        bool,
        MODEL,
        Field(
            description="a constant term; --no-intercept leaves it out (linear, and polynomial of powers) and scales "
            "without centring"
        ),
    ] = True
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, lt=2**31)], ...],
        Field(min_length=1, description="units of each hidden layer of the mlp, as 32,32"),
        BeforeValidator(_split_commas),
        MODEL,
    ] = (32, 32)
    activation: Annotated[
        Literal["tanh", "relu", "sigmoid", "silu", "softsign"],
        MODEL,
        Field(description="activation of the mlp"),
    ] = "tanh"

    loss: Annotated[
        LossName | None,
        FIT,
        Field(
            description="squared error summed (sse) or averaged (mse), absolute error (l1) or huber, both "
            "averaged (default: mse for a file, else sse)"
        ),
    ] = None
    batch_size: Annotated[int | None, FIT, Field(ge=1, lt=2**63, description="rows a step (default: all of them)")] = (
        None
    )
    dtype: Annotated[Literal["float32", "float64"], FIT, Field(description="number format")] = "float32"
    seed: Annotated[
        int,
        FIT,
        Field(ge=0, lt=2**63, description="decides the first weights, the split and the order of rows"),
    ] = 0

    at: Annotated[
        tuple[Annotated[tuple[Finite, ...], Field(min_length=1)], ...],
        BeforeValidator(_rows),
        RESULT,
        Field(description="point to predict, as 4, or 1.5,2 for two features; repeat it (default: 4, for one feature)"),
    ] = ()
    min_improvement: Annotated[
        Finite,
        RESULT,
        Field(
            ge=0,
            lt=1,
            description="share, below 1, by which the RMSE must be below the champion's to take its place",
        ),
    ] = 0

    @property
    def is_file(self) -> bool:
        """Whether `data` names a file and not a built-in set."""
        return self.data not in BUILT_IN

    @property
    def loss_name(self) -> LossName:
        """The loss, its default resolved: a sum over a file's many rows would need a learning rate of its own."""
        return self.loss or ("mse" if self.is_file else "sse")

    @property
    def standardizes(self) -> bool:
        """Whether the network scales inside, the default resolved."""
        return self.is_file if self.standardize is None else self.standardize

    @property
    def held_out_fraction(self) -> float:
        """The share of rows held out, the default resolved."""
        return (0.2 if self.is_file else 0.0) if self.test_fraction is None else self.test_fraction

    @property
    def validation_share(self) -> float:
        """The share of rows kept aside to choose by, the default resolved."""
        return self.validation_fraction or 0.0

    @property
    def subject(self) -> str:
        """What is modelled by what: the data's and the model's own short names."""
        return f"{self.data_name}-{self.model.rpartition(':')[2]}"

    @property
    def data_name(self) -> str:
        """The data's short name: a file's without folder and ending."""
        return re.sub(rf"[{_NOT_IN_A_NAME}\\\s]+", "-", PurePath(self.data).stem) if self.is_file else self.data


class TrainConfig(ProblemConfig):
    """One training run, from the data to the registered model."""

    examples = (
        "--optimizer Adam --lr 0.05 --epochs 2000",
        "--data houses.csv --target price --model mlp --optimizer LBFGS",
    )

    stream: Annotated[
        bool | None,
        DATA,
        Field(
            description="read the file anew for each epoch instead of holding its rows (default: where they are more "
            "than 256 MiB)"
        ),
    ] = None
    start: Annotated[
        Assignments,
        MODEL,
        Field(description="first value of a parameter, inside any scaling, as b1=500 or weight=1,2; repeat it"),
    ] = ()
    optimizer: Annotated[str, FIT, Field(min_length=1, description="any of torch.optim, in any letter case")] = "SGD"
    lr: Annotated[Finite, FIT, Field(gt=0, description="learning rate")] = 0.01
    option: Annotated[
        Assignments, FIT, Field(description="option of the optimizer, as momentum=0.9; repeat it for several")
    ] = ()
    lr_for: Annotated[
        Assignments,
        FIT,
        Field(description="learning rate of the parameters whose name matches, as bias=0.1; repeat it for several"),
    ] = ()
    scheduler: Annotated[
        str | None,
        FIT,
        Field(min_length=1, description="one of torch.optim.lr_scheduler, stepped once an epoch"),
    ] = None
    scheduler_option: Annotated[
        Assignments,
        FIT,
        Field(description="option of the scheduler, as step_size=100; repeat it for several"),
    ] = ()
    epochs: Annotated[int, FIT, Field(ge=1, description="passes over the training rows")] = 1000
    budget: Annotated[
        int | None,
        FIT,
        Field(ge=1, description="gradient evaluations at most, of which LBFGS makes many a step (default: any number)"),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        FIT,
        Field(description="where to train; auto takes a GPU if there is one"),
    ] = "auto"
    registered_name: Annotated[
        Annotated[
            str,
            _like(
                rf"[^{_NOT_IN_A_NAME}\s][^{_NOT_IN_A_NAME}]{{0,{LONGEST_NAME - 1}}}",
                f"a name without the characters / : . % and quotes, of at most {LONGEST_NAME}",
            ),
        ]
        | None,
        Parameter(name="--register", group=RESULT.group),
        Field(description="name of the registered model (default: DATA-MODEL)"),
    ] = None
    no_register: Annotated[
        bool,
        Parameter(name="--no-register", negative=(), group=RESULT.group),
        Field(description="stop when the exported model is verified"),
    ] = False

    checkpoint_seconds: Annotated[
        Finite, RUN, Field(ge=0, description="seconds between two checkpoints of the fit; 0 for none")
    ] = 5
    resume: Annotated[
        Annotated[str, _like("latest|[0-9a-f]{32}", "latest, or the id of a run, 32 hexadecimal digits")] | None,
        RUN,
        Field(description="go on with a run that was stopped: its id, or latest; other options stay as they were"),
    ] = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the result, by option: a run that goes on keeps these."""
        return self.model_dump(exclude={"checkpoint_seconds", "resume"})

    @property
    def standardizes(self) -> bool:
        """Whether the network scales inside: start values are of parameters in the user's units, unless it is asked."""
        return super().standardizes and not (self.standardize is None and self.start)

    @property
    def model_name(self) -> str:
        """The registered model's name, the default resolved."""
        return self.registered_name or self.subject[:LONGEST_NAME]

    @property
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""
        return f"{self.optimizer} lr={self.lr:g} {self.subject}"


COMPARISON = Parameter(group=Group("Comparison", sort_key=3))
EIGHT = ("SGD", "Adagrad", "Adam", "Adamax", "ASGD", "RMSprop", "Rprop", "LBFGS")


class CompareConfig(ProblemConfig):
    """One problem under several optimizers, each at many learning rates and from many seeds."""

    examples = (
        "--optimizers SGD,SGD:momentum=0.9,LBFGS --budget 2000",
        "--data houses.csv --target price --model mlp --register",
    )

    optimizers: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(
            min_length=1,
            description="any of torch.optim, with options as SGD:momentum=0.9, separated by commas; or all",
        ),
        BeforeValidator(_split_names),
        COMPARISON,
    ] = EIGHT
    budget: Annotated[int, COMPARISON, Field(ge=1, description="gradient evaluations of each training")] = 200
    learning_rates: Annotated[
        int,
        COMPARISON,
        Field(ge=2, le=1000, description="learning rates of each optimizer, 2 to 1000, around its default"),
    ] = 13
    decades: Annotated[
        Finite, COMPARISON, Field(gt=0, le=20, description="width of that grid in powers of ten, at most 20")
    ] = 6
    lr: Annotated[
        Finite, COMPARISON, Field(gt=0, description="one learning rate for all, shown beside the tuned ones")
    ] = 0.01
    seeds: Annotated[
        int,
        COMPARISON,
        Field(
            ge=1,
            le=100_000,
            description="trainings at each learning rate, at most 100000; each has first weights and an order",
        ),
    ] = 10
    target_loss: Annotated[
        Finite | None,
        COMPARISON,
        Field(
            description="loss whose first time is noted (default: least squares' own and 0.0001 of the way to the "
            "constant mean's; a tenth of the constant mean's for other networks)"
        ),
    ] = None
    controls: Annotated[
        bool,
        Parameter(negative=(), group=COMPARISON.group),
        Field(description="compare optimizers whose place is known as well, and fail where they are elsewhere"),
    ] = False
    workers: Annotated[
        Workers,
        COMPARISON,
        Field(
            description="who trains: so many processes, a Dask cluster of this machine's cores (dask), or one that is "
            "there (dask://HOST:PORT) (default: a process for each core)"
        ),
    ] = None
    register_winners: Annotated[
        bool,
        Parameter(name="--register", negative=(), group=RESULT.group),
        Field(description="register each optimizer's tuned winner as DATA-MODEL, the best as champion"),
    ] = False

    @property
    def validation_share(self) -> float:
        """The share of rows that learning rates are chosen on, the default resolved."""
        return (0.2 if self.is_file else 0.0) if self.validation_fraction is None else self.validation_fraction

    @property
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""
        return f"{', '.join(self.optimizers)}: {self.subject}"

    def training(self, optimizer: str = "SGD", lr: float = 0.01, option: tuple[str, ...] = ()) -> TrainConfig:
        """One of the trainings alone, from the first seed; it stops where the budget is spent."""
        shared = {name: getattr(self, name) for name in ProblemConfig.model_fields}
        return TrainConfig(
            **shared | {"validation_fraction": self.validation_share},
            optimizer=optimizer,
            lr=lr,
            option=option,
            epochs=self.budget,
            budget=self.budget,
            device="cpu",
            stream=False,  # the trainings of a comparison share their rows in memory
            no_register=not self.register_winners,
            checkpoint_seconds=0,  # a comparison is done again as a whole
        )


class TutorialConfig(FlowConfig):
    """Eight levels of PyTorch on one problem."""

    examples = ("--steps 200",)

    steps: Annotated[
        int | None,
        FIT,
        Field(ge=1, description="steps of each level at most (default: its own, 2,000, and 30,000 for the last)"),
    ] = None
    dtype: Annotated[Literal["float32", "float64"], FIT, Field(description="number format")] = "float32"
    seed: Annotated[
        int, FIT, Field(ge=0, lt=2**63, description="decides the first values, and the draws of the last level")
    ] = 0

    @property
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""
        return f"eight levels, {self.dtype}, seed {self.seed}" + (f", {self.steps} steps" if self.steps else "")


class PredictConfig(FlowConfig):
    """Predictions of one model for the rows of a file, or for points."""

    examples = (
        "--model models:/line-linear@champion --at 4",
        "--model models:/houses-mlp@champion --input new.csv --output scored.parquet",
    )

    model: Annotated[
        str,
        MODEL,
        Field(
            min_length=1,
            description="models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, or the path of an .onnx file",
        ),
    ]
    input: Annotated[
        str | None,
        DATA,
        Field(
            min_length=1,
            description=".csv or .parquet file whose rows are predicted, or a folder of .parquet files, which are read "
            "in the order of their names; it may hold further columns",
        ),
    ] = None
    at: Annotated[
        tuple[Annotated[tuple[Finite, ...], Field(min_length=1)], ...],
        BeforeValidator(_rows),
        DATA,
        Field(description="point to predict instead, as 4, or 1.5,2 for two features; repeat it"),
    ] = ()
    output: Annotated[
        str | None,
        RESULT,
        Field(min_length=1, description=".csv or .parquet file to write, a column predicted_TARGET for each target"),
    ] = None
    keep: Annotated[
        Names, RESULT, Field(description="columns of the input to write as well, as id,date; those of a CSV stay text")
    ] = ()
    overwrite: Annotated[
        bool, Parameter(negative=(), group=RESULT.group), Field(description="replace the output where it exists")
    ] = False
    workers: Annotated[
        Workers,
        RUN,
        Field(
            description="who predicts, of a .parquet input: so many processes, a Dask cluster of this machine's cores "
            "(dask), or one that is there (dask://HOST:PORT) (default: this process, on every core)"
        ),
    ] = None

    @model_validator(mode="after")
    def _has_rows_and_a_place_for_them(self) -> Self:
        if bool(self.input) == bool(self.at):
            raise ValueError("give either --input with a file, or --at with a point")
        if self.input and not self.output:
            raise ValueError("--input needs --output, a .csv or .parquet file for the predictions")
        return self

    @property
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""
        return f"{PurePath(self.input).name if self.input else 'points'} by {self.model}"


class VerifyConfig(FlowConfig):
    """One proof, today, that a model still predicts what it was proved to predict, and who passes may be champion."""

    examples = (
        "--model models:/line-linear@champion",
        "--promote models:/line-linear/1",
    )

    model: Annotated[
        str | None,
        MODEL,
        Field(
            min_length=1,
            description="models:/NAME@ALIAS, models:/NAME/VERSION, the id of a run, or a folder with model.onnx and "
            "golden.parquet",
        ),
    ] = None
    promote: Annotated[
        Annotated[
            str,
            _like(
                r"(models:/[^/@]+/)?[1-9][0-9]*", "models:/NAME/VERSION, or a version's number together with --model"
            ),
        ]
        | None,
        RESULT,
        Field(description="version to make champion if it passes: models:/NAME/VERSION, or its number with --model"),
    ] = None

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if self.promote is None:
            if self.model is None:
                raise ValueError("give --model, or --promote models:/NAME/VERSION")
        elif self.promote.startswith("models:/"):
            if self.model is not None:
                raise ValueError(f"--promote {self.promote} names the model; leave --model {self.model} out")
        elif not re.fullmatch(r"models:/[^/@]+(@[^/@]+|/[0-9]+)", self.model or ""):
            raise ValueError(
                f"--promote {self.promote} needs --model models:/NAME@ALIAS or models:/NAME/VERSION beside it; "
                f"{self.model or 'none'} was given"
            )
        return self

    @property
    def promoted(self) -> tuple[str, str] | None:
        """The registered model's name and the version that is to be champion; None where none is."""
        if self.promote is None:
            return None
        named = (self.model or self.promote).removeprefix("models:/")
        return re.split("[@/]", named)[0], self.promote.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Of the model that is to be proved."""
        return "models:/{}/{}".format(*self.promoted) if self.promoted else str(self.model)

    @property
    def title(self) -> str:
        """A name for the run that tells it from its neighbours."""
        return f"{'promote' if self.promote else 'verify'} {self.address}"


class PreflightConfig(BaseModel):
    """Which deployments are asked about."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    examples: ClassVar[tuple[str, ...]] = ("--deployment train/train-nightly",)

    deployment: Annotated[
        Names,
        RUN,
        Field(description="deployment to ask about, as train/train-nightly; repeat it (default: all of fourfold's)"),
    ] = ()


SERVING = Parameter(group=Group("Serve", sort_key=8))
LATE_POLICIES = "skip-30min (or another time in s, min, h or d), or latest-only"
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """Read `30s`, `15min`, `1h` or `1d`, and a bare number as seconds; raises ValueError where it is none of these."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(s|min|h|d)?", text)
    if found is None:
        raise ValueError("should be a number and s, min, h or d, as 30s, 15min, 1h or 1d")
    return timedelta(**{_UNITS[found[2] or "s"]: int(found[1])})


def _check_duration(text: str) -> str:
    duration(text)
    return text


def _check_late(policy: str) -> str:
    if policy != "latest-only":
        if not policy.startswith("skip-"):
            raise ValueError(f"should be {LATE_POLICIES}")
        duration(policy.removeprefix("skip-"))
    return policy


def _check_timezone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("should be the name of a time zone, as Europe/Berlin or UTC") from error
    return name


class ServeConfig(BaseModel):
    """Whether a flow is run once or served, and when: of the command line alone, no parameter of the flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serve: Annotated[
        bool,
        Parameter(negative=(), group=SERVING.group),
        Field(description="stay, and run the flow with these options each time it is due, instead of once now"),
    ] = False
    cron: Annotated[str | None, SERVING, Field(min_length=1, description='when it is due, as "0 6 * * *"')] = None
    interval: Annotated[
        Annotated[str, AfterValidator(_check_duration)] | None,
        SERVING,
        Field(description="how often it is due instead, as 30s, 15min, 1h or 1d"),
    ] = None
    timezone: Annotated[
        Annotated[str, AfterValidator(_check_timezone)] | None,
        SERVING,
        Field(description="whose clock it goes by, as Europe/Berlin (default: UTC)"),
    ] = None
    late: Annotated[
        Annotated[str, AfterValidator(_check_late)] | None,
        SERVING,
        Field(
            description="what becomes of a run that begins late: skip-30min skips it more than that after it was due, "
            "latest-only where a later one is due as well (default: it is made up for)"
        ),
    ] = None
    name: Annotated[
        str,
        SERVING,
        _like(r"[^/%&<>\s][^/%&<>\x00-\x1f]*", "a name without / % & < >"),
        Field(description="name of the deployment; one of that name is replaced"),
    ] = "served"

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        others = [name for name in self.model_fields_set if name != "serve"]
        if not self.serve:
            if others:
                raise ValueError(f"--{min(others)} needs --serve")
        elif bool(self.cron) == bool(self.interval):
            raise ValueError('--serve needs either --cron, as "0 6 * * *", or --interval, as 1h')
        return self
