"""Trainings that begin in the same instant: `python at_once.py COUNT NAME FOLDER`.

The libraries are imported once, and each training is a process of its own from there: eight that import side by side
would begin seconds apart, and take the time of a test.
"""

import os
import sys
import threading
from pathlib import Path

from fourfold.configuration import TrainConfig
from tasks import command_line, prefect_api, services

if __name__ == "__main__":
    services.prepare_environment()
    server = prefect_api.PrefectServer.begin()

import onnxscript  # noqa: F401 - of the export, which imports it late

from flows.train_flow import train_flow
from tasks.request import check_optimizer
from tasks.start import typed


def main(count: int, name: str, folder: Path) -> None:
    check_optimizer(TrainConfig())
    assert threading.active_count() == 1, "only then may a process be forked"
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            config = TrainConfig(seed=number, epochs=20 * (number + 1), registered_name=name)
            _train(config, folder / str(number))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(codes))


def _train(config: TrainConfig, told: Path) -> None:
    sys.stdout, sys.stderr = told.with_suffix(".out").open("w"), told.with_suffix(".err").open("w")

    typed(command_line.Request(config, json=True, verbose=False), train_flow, server)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
