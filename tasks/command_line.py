"""From what is typed to a configuration, and from how the work ends to an exit code. Light to import."""

import atexit
import contextlib
import gc
import io
import json
import logging
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.theme import Theme

from fourfold.configuration import FlowConfig, ServeConfig
from fourfold.errors import FourfoldError, RequestError, is_out_of_space, visible
from tasks import signals
from tasks.terminal import Result, show

Config = TypeVar("Config", bound=BaseModel)
# Options whose name is not their field's.
_SPELLINGS = {"registered-name": "register", "register-winners": "register"}
# The export and MLflow make millions of objects that stay; at the default of 700 a second goes into looking at them.
GARBAGE_THRESHOLDS = (100_000, 20, 100)
SECONDS_TO_LEAVE = 3.0
SECONDS_TO_LEAVE_INTERRUPTED = 1.0
OUTPUT_GROUP = Group("Output", sort_key=9)
OUTPUT = Parameter(group=OUTPUT_GROUP, negative=())
# No colour, which vanishes on one background or another.
_THEME = Theme({"cyclopts.name": "bold", **dict.fromkeys(("cyclopts.choices", "cyclopts.default"), "none")})


@dataclass(frozen=True)
class Request(Generic[Config]):
    """What was typed: the flow's configuration, how to tell the result, and whether the flow is served."""

    config: Config
    json: bool
    verbose: bool
    serving: ServeConfig = field(default_factory=ServeConfig)


def read(
    flow: str, config_class: type[Config], description: str, arguments: list[str] | None = None
) -> Request[Config]:
    """Read a command line; a wrong one ends the process with one line and code 2, `--help` with code 0.

    Garbage collection is off from here to `run`: of the time that the imports between take, a quarter would
    go into looking for garbage among what stays.
    """
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot spell is no fault of the run
            stream.reconfigure(errors="backslashreplace")
    # Registered first, so that it runs last, when Prefect has sent its last words: the interpreter would then
    # spend a second on freeing what the kernel frees at once.
    atexit.register(_leave)
    signals.end_at_once()
    request = parse(flow, config_class, description, sys.argv[1:] if arguments is None else arguments)
    if request.serving.serve:  # its runs come and go, and their log is what there is to see
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    if request.verbose:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = os.environ["MLFLOW_LOGGING_LEVEL"] = "INFO"
        os.environ["PREFECT_LOGGING_INTERNAL_LEVEL"] = "ERROR"
    return request


def parse(flow: str, config_class: type[Config], description: str, arguments: Sequence[str]) -> Request[Config]:
    """What a command line asks for; ends the process as `read` does, and changes nothing of it."""
    requests: list[Request[Config]] = []
    program = f"python flows/{file_of(flow, config_class)}"
    obey(application(program, config_class, description, requests, served="--serve" in arguments), arguments)
    if not requests:  # --help has been printed
        raise SystemExit(0)
    return requests[0]


def file_of(flow: str, config_class: type[BaseModel]) -> str:
    """The name of a flow's file."""
    return f"{flow}_flow.py" if issubclass(config_class, FlowConfig) else f"{flow}.py"


def application(
    program: str, config_class: type[Config], description: str, requests: list[Request[Config]], *, served: bool
) -> App:
    """The command of a flow, which adds what it is asked for to `requests`.

    Args:
        program: what a person types in front of the options.
        config_class: has the options, and examples of them.
        description: of the flow.
        requests: grows.
        served: whether --help shows the options of serving.
    """
    is_flow = issubclass(config_class, FlowConfig)
    app = App(
        name=program, help=description, help_epilogue=_epilogue(program, config_class, told=served),
        help_format="plaintext", console=Console(theme=_THEME), version_flags=(), result_action="return_value",
        default_parameter=Parameter(negative_iterable=(), show_default=_spell_default),
    )  # fmt: skip
    app["--help"].group = OUTPUT_GROUP

    def command(
        *,
        config: Annotated[config_class, Parameter(name="*")] = None,  # type: ignore[valid-type]
        serving: Annotated[ServeConfig | None, Parameter(name="*", parse=is_flow, show=is_flow and served)] = None,
        json: Annotated[
            bool, OUTPUT, Parameter(help="last line on standard output: the result as one JSON object")
        ] = False,
        verbose: Annotated[
            bool, OUTPUT, Parameter(help="show what the libraries log, and the traceback of a fault")
        ] = False,
    ) -> None:
        # Nothing typed may be a wrong request as well; made here, that leaves --help alone.
        asked, when = config_class() if config is None else config, serving or ServeConfig()
        if when.serve and json:
            raise RequestError("--json needs a result, and what is served has none; leave it out")
        requests.append(Request(asked, json, verbose, when))

    app.default(command)
    return app


def _epilogue(program: str, config_class: type[BaseModel], *, told: bool) -> str:
    """Examples, in lines that a shell takes as one, and where the options of serving are."""
    lines = ["Examples:"]
    for example in config_class.examples:  # type: ignore[attr-defined]
        words = f"{program} {example}"
        lines.append(
            "  " + " \\\n      ".join(textwrap.wrap(words, 74, break_on_hyphens=False, break_long_words=False))
        )
    if issubclass(config_class, FlowConfig) and not told:
        lines += ["", "To run it by a schedule: --serve, and --serve --help for more."]
    return "\n".join(lines)


def obey(app: App, arguments: Sequence[str]) -> None:
    """Let a command read its line; a wrong one ends the process with one line and code 2."""
    try:
        app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        cause = error.__cause__
        _refuse(_first_fault(cause) if isinstance(cause, ValidationError) else " ".join(str(error).split()))
    except ValidationError as error:
        _refuse(_first_fault(error))
    except RequestError as error:
        _refuse(str(error))


def _spell_default(value: Any) -> str | None:
    """A default as a person would type it; one that means "none" is not shown."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or None
    return None if value is None or isinstance(value, bool) else str(value)


def run(request: Request[Config], flow: str, work: Callable[[Config], Result]) -> NoReturn:
    """Do the work, tell the result, and end the process with the code it stands for."""
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.enable()
    signals.become_exceptions()
    logging.raiseExceptions = request.verbose  # a log line that could not be sent fills the screen otherwise
    result: Result | None = None
    reason, code = "", 0
    try:
        with signals.uncovered():
            result = work(request.config)
    except Exception as error:
        result = getattr(error, "result", None)
        reason, code = _one_line(error), getattr(error, "exit_code", 1)
        if request.verbose:
            print(*map(visible, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        elif not isinstance(error, FourfoldError) and not is_out_of_space(error):
            reason += "; --verbose shows where"
    except (KeyboardInterrupt, SystemExit) as error:  # Ctrl-C and SIGTERM
        result = getattr(error, "result", None)
        reason, code = "interrupted", getattr(error, "code", 128 + signal.SIGINT)
        if not isinstance(code, int) or not code:  # asked for by code of the user's own
            reason, code = f"something in the run asked to exit: {code}", 1
    signals.are_ignored()
    with contextlib.suppress(BrokenPipeError):  # a reader that left early is no fault of the run
        if result is not None:
            show(result, sys.stderr if request.json else sys.stdout)
        if reason:
            print(f"{flow}: {reason}", file=sys.stderr)
        if request.json:
            print(json.dumps(result.as_json() if result else {"flow": flow, "status": "failed", "reason": reason}))
    _exit_code.append(code)
    _limit_exit(SECONDS_TO_LEAVE_INTERRUPTED if code > 128 else SECONDS_TO_LEAVE)
    sys.exit(code)


_exit_code: list[int] = []


def _limit_exit(seconds: float) -> None:
    """Threads of the libraries may wait at the exit, for minutes, for a server that is gone."""
    timer = threading.Timer(seconds, _leave)
    timer.daemon = True
    timer.start()


def _leave() -> None:
    if _exit_code:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_exit_code[0])


def _one_line(error: BaseException) -> str:
    text = visible(" ".join(str(error).split()))
    if is_out_of_space(error):
        return f"no space is left on a disk: {text}; what was whole before still is: free some, and start again"
    if isinstance(error, FourfoldError):
        return text
    return f"{type(error).__name__}: {text or 'no reason given'}"


def _refuse(reason: str) -> NoReturn:
    print(f"{visible(reason)}; --help shows what is allowed", file=sys.stderr)
    raise SystemExit(RequestError.exit_code)


def _first_fault(error: ValidationError) -> str:
    """The first fault of a configuration in one line: the option, what was given, what is allowed."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # of several options, which it names
        return message
    return f"{option_of(str(fault['loc'][0]))}: {fault['input']!r} was given; {message[0].lower()}{message[1:]}"


def option_of(field: str) -> str:
    """The option that sets a field."""
    name = field.replace("_", "-")
    return f"--{_SPELLINGS.get(name, name)}"
