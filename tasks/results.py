"""What is known of any flow's run, from its start to its end."""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prefect.runtime import flow_run

from fourfold.configuration import FlowConfig
from fourfold.processes import temporary_folder
from tasks import signals
from tasks.prefect_client import without_mark
from tasks.reporting import Table, publish
from tasks.sweep import sweep
from tasks.tracking import NOTE, RunRecord, recorded_run


@dataclass(kw_only=True)
class FlowResult(ABC):
    """Filled in as the steps end.

    Attributes:
        flow: the flow's name.
        about: what a run of it is, and what to open, for who finds it in MLflow.
        status: "running", and then how it ended.
        reason: why it did not come to its end.
    """

    flow: ClassVar[str]
    about: ClassVar[str]
    config: FlowConfig
    flow_run_id: str | None = None
    run_id: str | None = None
    status: str = "running"
    reason: str = ""
    seconds: float = 0.0
    picture: Path | None = None
    url: str | None = None
    list_url: str | None = None

    @property
    def resumed(self) -> str | None:
        """The id of the run that goes on, None for a new one."""
        return None

    @property
    @abstractmethod
    def done(self) -> str:
        """The status of a run that came to its end."""

    @abstractmethod
    def rows(self) -> dict[str, str]:
        """The result for a person, by name."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """The machine-readable result; null where the run did not come so far."""

    def ids(self) -> dict[str, Any]:
        """What every machine-readable result begins with."""
        return {
            "flow": self.flow,
            "status": self.status,
            "reason": self.reason or None,
            "run_id": self.run_id,
            "flow_run_id": self.flow_run_id,
        }

    def links(self) -> dict[str, str]:
        """Addresses of the run's pages, by what is there."""
        named = {"The run in MLflow": self.url, "All runs": self.list_url}
        return {name: address for name, address in named.items() if address}

    def tables(self) -> tuple[Table, ...]:
        """What of the result is a table of more than names and values."""
        return ()

    @contextmanager
    def recorded(self, parent: RunRecord | None = None) -> Iterator[tuple[RunRecord, Path]]:
        """Open the flow's run in MLflow and a temporary folder, for a block whose end is followed.

        As a part of another flow, the run stands below that flow's `parent`, and has no page of its own in Prefect.
        Any other begins with closing what a process that was killed left open.
        """
        self.flow_run_id = flow_run.id
        tags = {"flow_run_id": flow_run.id, "flow_run_url": flow_run.ui_url}
        if parent:
            tags["mlflow.parentRunId"] = parent.run_id
        tags[NOTE] = f"{self.about} [Its flow run in Prefect]({flow_run.ui_url})." if flow_run.ui_url else self.about
        experiment = parent.experiment if parent else self.flow
        with ExitStack() as stack:
            folder = temporary_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(without_mark())
            stack.enter_context(self.followed(published=not parent))
            if not parent:
                sweep(self.resumed)
            record = stack.enter_context(
                recorded_run(experiment, self.config.title, self.config.parameters, tags, self.resumed)
            )
            self.run_id, self.url, self.list_url = record.run_id, record.url, record.list_url
            stack.enter_context(signals.uncovered())
            yield record, folder

    @contextmanager
    def followed(self, *, published: bool = True) -> Iterator["FlowResult"]:
        """Note how the block ends, publish it in Prefect, and hang this result on the exception that ends it."""
        started = time.perf_counter()
        try:
            yield self
        except BaseException as error:
            self.status = getattr(error, "status", "failed")
            self.reason = str(error) or type(error).__name__
            error.result = self  # type: ignore[attr-defined]
            raise
        else:
            self.status = self.done
        finally:
            self.seconds = time.perf_counter() - started
            if published:
                publish(self.flow, self.config.title, self.rows(), self.links(), self.picture, self.tables())
