"""What a training that was stopped leaves on the disk, and which process holds it. Light to import."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.services import runs_folder

REQUEST = "request.json"  # what a run was asked for, beside its checkpoints
LOCK = ".lock"  # there too: held by the process that trains the run


def checkpoints_of(run_id: str) -> Path:
    """Where the checkpoints of a run lie: on this machine, also where a server keeps the runs."""
    return runs_folder() / "checkpoints" / run_id


def can_go_on(run_id: str) -> bool:
    """Whether a run that was stopped left what it takes to go on."""
    return (checkpoints_of(run_id) / REQUEST).is_file()


@contextmanager
def held(run_id: str) -> Iterator[bool]:
    """Hold a run's checkpoints for a block, so that no process of this machine goes on from them meanwhile.

    Gives whether they were free; of a run that has none there is nothing to hold.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if can_go_on(run_id):
            try:
                stack.enter_context(FileLock(checkpoints_of(run_id) / LOCK).acquire(timeout=0))
            except Timeout:
                free = False
        yield free
