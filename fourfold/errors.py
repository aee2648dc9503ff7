"""What a flow may catch, and the exit code that each error stands for.

FourfoldError
 ├── RequestError       the request was wrong; nothing was created             exit 2
 ├── DivergedError      the fit went off; its curve is kept                    exit 1
 ├── ScheduleError      the scheduler cannot compute a learning rate           exit 1
 ├── ExportError        torch cannot export the network                        exit 1
 ├── ParityError        the exported file predicts otherwise than torch does   exit 1
 ├── ComparisonError    a comparison contradicts itself                        exit 1
 ├── AgreementError     one algorithm in several spellings ends apart          exit 1
 ├── RegistrationError  the registry gives back another file than was proved   exit 1
 ├── CheckpointError    a fit cannot be kept, or cannot go on from what was    exit 1
 ├── PreflightError     a deployment would not fire                            exit 1
 └── ServiceError       a server did not come up, or stayed away               exit 1
"""

import errno
import re

# How libraries tell it that hand no number on: SQLite, and those that are written in C++ or Rust.
_FULL = re.compile("database or disk is full|No space left on device|Disk quota exceeded")


class FourfoldError(Exception):
    """A foreseen end of the work, told in one sentence."""

    exit_code = 1
    status = "failed"


class RequestError(FourfoldError):
    """What was given, what is allowed, and what to do."""

    exit_code = 2


class DivergedError(FourfoldError):
    """The fit diverged: nothing was exported."""

    status = "diverged"


class ScheduleError(FourfoldError):
    """The scheduler took its options, and cannot compute a learning rate from them."""


class ExportError(FourfoldError):
    """torch cannot export this network."""


class ParityError(FourfoldError):
    """onnxruntime does not predict what torch predicts: nothing was registered."""

    status = "rejected"


class ComparisonError(FourfoldError):
    """What is known beforehand, or trained a second time, came out otherwise: the table cannot be trusted."""


class AgreementError(FourfoldError):
    """Levels that are one algorithm ended in different places, or the gate let a random network pass."""


class RegistrationError(FourfoldError):
    """What the registry keeps is not the file that was verified."""


class CheckpointError(FourfoldError):
    """The state of a fit cannot be kept, or none that is whole is there, or it is another fit's."""


class ServiceError(FourfoldError):
    """A service that this process started did not come up, or one that it works with stayed away."""


class PreflightError(FourfoldError):
    """A deployment would not fire: the first reason."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_space(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def visible(text: str) -> str:
    """A text with escapes in place of what a terminal would obey and nobody would see: `\\x1b`, `\\n`, `\\u202e`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
