"""Jobs for workers: which are under way, in which order results come, and who may be asked for."""

import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fourfold.configuration import CompareConfig, PredictConfig
from fourfold.errors import RequestError, ServiceError
from fourfold.onnx_file import ExportedModel
from tasks import command_line
from tasks.predict import prepare
from tasks.workers import MOST_HELD, Job, Needs, Workers, check_workers, on_one_core, workers


class Desk:
    """Workers that do what they are told when they are told: one of the jobs under way, by its place."""

    def __init__(self, count: int, choose: Callable[[int], int]) -> None:
        self.count, self.choose = count, choose
        self.under_way: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = self.begun = 0

    def submit(self, _: Callable[..., Any], work: Callable[[], Any]) -> "Future[Any]":
        self.begun += 1
        future: Future[Any] = Future()
        self.under_way.append((future, work))
        self.most = max(self.most, len(self.under_way))
        if len(self.under_way) >= self.count:
            ended, done = self.under_way.pop(self.choose(len(self.under_way)))
            ended.set_result(done())
        return future

    def workers(self, look: Callable[[], None] = lambda: None) -> Workers:
        return Workers(self.submit, lambda: look() or self.count, lambda error, job: None)


def jobs(count: int) -> list[Job[int]]:
    return [Job(str(number), partial(abs, -number)) for number in range(count)]


class TestResults:
    @pytest.mark.parametrize("in_order", [False, True])
    def test_each_job_is_done_once_and_known_by_its_number(self, in_order: bool) -> None:
        with workers(2, 2, Needs(())) as pool:
            found = list(pool.results(jobs(20), in_order=in_order))
        assert sorted(found) == [(number, number) for number in range(20)]
        if in_order:
            assert found == sorted(found)

    def test_no_more_jobs_are_under_way_than_workers_are_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tasks.workers.SECONDS_BETWEEN_LOOKS", 0.001)
        desk = Desk(100, lambda running: 0)

        def end_one() -> int:
            if desk.under_way:
                ended, work = desk.under_way.pop(0)
                ended.set_result(work())
            return 3

        assert len(list(Workers(desk.submit, end_one, lambda error, job: None).results(jobs(30)))) == 30
        assert desk.most == 3

    def test_behind_a_slow_job_others_are_done_but_only_so_many(self) -> None:
        """The first one is never chosen: what comes after it waits for it, and may not fill the memory."""
        desk = Desk(2, lambda running: 1)
        begun: list[int] = []

        def look() -> None:
            begun.append(desk.begun)
            if len(begun) > 100 or (len(begun) > 1 and begun[-1] == begun[-2]):
                raise TimeoutError("nothing new is begun")

        endless = (Job(str(number), partial(abs, -number)) for number in range(10**9))
        with pytest.raises(TimeoutError):
            next(desk.workers(look).results(endless, in_order=True))
        assert desk.begun == MOST_HELD * 2

    def test_a_process_that_is_killed_is_told_with_what_it_did(self) -> None:
        with (
            pytest.raises(ServiceError, match=r"a process was killed, or had no memory left, while the bomb was done"),
            workers(1, 1, Needs(())) as pool,
        ):
            list(pool.results([Job("the bomb", partial(signal.raise_signal, signal.SIGKILL))]))

    def test_a_job_has_one_thread_whatever_its_process_has(self) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert on_one_core(torch.get_num_threads) == 1
        finally:
            torch.set_num_threads(before)

    def test_no_more_processes_are_started_than_can_have_something_to_do(self) -> None:
        with workers(64, 3, Needs(())) as pool:
            assert pool.count() == 3

    def test_processes_that_do_not_train_do_not_load_torch(self) -> None:
        loaded = Job("look", partial(eval, "'torch' in __import__('sys').modules"))
        with workers(1, 1, Needs(())) as pool:
            assert list(pool.results([loaded])) == [(0, False)]


GOOD = [(1, 1), ("256", 256), ("dask", "dask"), ("dask://a-b.example_c:8786", "dask://a-b.example_c:8786"),
        ("dask://[::1]:8786", "dask://[::1]:8786"), (None, None)]  # fmt: skip
WRONG = [
    0,
    257,
    "-1",
    "many",
    "dask:2",
    "dask://",
    "dask://host",
    "dask://host:port",
    "tcp://host:1",
    "dask://a b:1",
    1.5,
]


class TestAsked:
    @pytest.mark.parametrize(("given", "taken"), GOOD)
    def test_a_number_or_a_cluster_may_be_asked_for(self, given: Any, taken: Any) -> None:
        assert CompareConfig(workers=given).workers == taken
        assert PredictConfig(model="m", at="1", workers=given).workers == taken

    @pytest.mark.parametrize("given", WRONG)
    def test_anything_else_is_refused_with_what_is_allowed(self, given: Any) -> None:
        with pytest.raises(ValidationError, match="should be a number from 1 to 256, dask, or dask://HOST:PORT"):
            CompareConfig(workers=given)

    @pytest.mark.usefixtures("interpreter")
    def test_a_wrong_one_on_the_command_line_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            command_line.read("compare", CompareConfig, "", ["--workers", "many"])
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert said.startswith(
            "--workers: 'many' was given; should be a number from 1 to 256, dask, or dask://HOST:PORT"
        )
        assert said.count("\n") == 1

    @pytest.mark.usefixtures("interpreter")
    @pytest.mark.parametrize(("typed", "taken"), [("2", 2), ("dask", "dask"), ("dask://h:1", "dask://h:1")])
    def test_the_command_line_takes_both_kinds(self, typed: str, taken: Any) -> None:
        assert command_line.read("compare", CompareConfig, "", ["--workers", typed]).config.workers == taken

    def test_the_form_of_prefect_has_both_kinds_with_their_bounds(self) -> None:
        number, text, nothing = CompareConfig.model_json_schema()["properties"]["workers"]["anyOf"]
        assert (number["minimum"], number["maximum"], text["type"], nothing["type"]) == (1, 256, "string", "null")

    def test_without_dask_its_workers_are_refused_with_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "tasks.workers_dask", raising=False)
        monkeypatch.delattr("tasks.workers_dask", raising=False)
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(RequestError, match=r"needs Dask, .* install it: pip install fourfold\[dask\]"):
            check_workers("dask", Needs(()))

    @pytest.mark.parametrize("rows", ["point", "csv"])
    def test_rows_that_cannot_be_read_apart_are_refused(
        self, rows: str, linear_file: Callable[..., ExportedModel], tmp_path: Path
    ) -> None:
        (tmp_path / "rows.csv").write_text("x\n1\n2\n")
        given = (
            {"at": "4"} if rows == "point" else {"input": str(tmp_path / "rows.csv"), "output": str(tmp_path / "o.csv")}
        )
        with pytest.raises(RequestError, match=r"--workers 2 needs a .parquet --input"):
            prepare(PredictConfig(model=str(linear_file([[2.0]], [0.0]).path), workers=2, **given))
