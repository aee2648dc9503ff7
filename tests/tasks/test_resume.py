"""A training that is stopped goes on in its own run; what cannot go on is told in one line, and nothing is touched."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from fourfold.checkpoints import CheckpointFolder, Keeper
from fourfold.configuration import CompareConfig, TrainConfig
from fourfold.errors import CheckpointError, DivergedError, ParityError, RequestError
from fourfold.fitting import FitResult
from tasks import train as train_module
from tasks.build_model import build
from tasks.make_data import load
from tasks.resume import Place, asked_again
from tasks.stopped import checkpoints_of
from tasks.tracking import recorded_run
from tasks.train import stopped_between_steps, train

CONFIG = TrainConfig(epochs=40, optimizer="Adam", lr=0.05)


class Stopped(BaseException):
    """As an interruption that nobody catches."""


def fit(
    config: TrainConfig, folder: Path, *, after: Callable[[FitResult], None] = lambda _: None, save_at: int = 0
) -> tuple[str, FitResult]:
    """Open the run, or again the one that is resumed, and train; with `save_at` it is stopped after so many epochs."""
    with (
        Place.of(config.resume) as place,
        recorded_run("train", "a run", config.parameters, {"flow_run_id": "f1"}, config.resume) as record,
    ):
        checkpoints = place.open(config, record)
        data = load(config)
        built = build(config, data)
        if save_at and checkpoints:
            built.core.register_forward_hook(_stopping_at(save_at))
        fitted = train.fn(config, built, data, record, folder, checkpoints)
        after(fitted)
        return record.run_id, fitted


def _stopping_at(epochs: int) -> Callable[..., None]:
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > epochs:
            raise Stopped

    return hook


@pytest.fixture
def stopped(store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was stopped in its 25th epoch, with a checkpoint of nearly each before."""
    monkeypatch.setattr(Keeper, "due", lambda self: True)
    with pytest.raises(Stopped):
        fit(CONFIG, tmp_path, save_at=24)
    (run,) = store.search_runs([experiment(store)])
    monkeypatch.undo()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    return run.info.run_id


def experiment(store: MlflowClient) -> str:
    found = store.get_experiment_by_name("train")
    assert found is not None
    return str(found.experiment_id)


def history(store: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    keys = store.get_run(run_id).data.metrics
    return {
        key: sorted((one.step, one.value) for one in store.get_metric_history(run_id, key))
        for key in keys if key != "fit_seconds"
    }  # fmt: skip


def test_a_stopped_run_goes_on_in_itself_to_the_same_bits(stopped: str, store: MlflowClient, tmp_path: Path) -> None:
    assert store.get_run(stopped).info.status == "KILLED"
    resumed = asked_again(TrainConfig(resume=stopped))
    run_id, fitted = fit(resumed, tmp_path)
    assert run_id == stopped
    whole, same = fit(CONFIG, tmp_path)
    assert whole != stopped
    assert fitted.history.values.tobytes() == same.history.values.tobytes()
    assert fitted.history.loss.tobytes() == same.history.loss.tobytes()
    assert history(store, stopped) == history(store, whole)
    run, other = store.get_run(stopped), store.get_run(whole)
    assert run.data.params == other.data.params
    assert (run.info.status, run.data.tags["outcome"], run.data.tags["resumed"]) == ("FINISHED", "completed", "1")
    assert not checkpoints_of(stopped).exists(), "what is finished needs no checkpoint"


def test_latest_is_the_last_that_was_stopped_and_can_go_on(stopped: str, store: MlflowClient, tmp_path: Path) -> None:
    fit(CONFIG, tmp_path)  # finished
    (checkpoints_of("0" * 32)).mkdir()  # of a run that nobody knows
    (checkpoints_of("0" * 32) / "request.json").write_text(CONFIG.model_dump_json())
    assert asked_again(TrainConfig(resume="latest")).resume == stopped
    with FileLock(checkpoints_of(stopped) / ".lock"), pytest.raises(RequestError, match="--resume latest: no training"):
        asked_again(TrainConfig(resume="latest"))


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(store: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(CONFIG, tmp_path, save_at=5)
    (run,) = store.search_runs([experiment(store)])
    assert not list(checkpoints_of(run.info.run_id).glob("*.safetensors"))
    run_id, fitted = fit(asked_again(TrainConfig(resume="latest")), tmp_path)
    assert run_id == run.info.run_id
    assert fitted.history.values.tobytes() == fit(CONFIG, tmp_path)[1].history.values.tobytes()


def test_a_run_that_was_stopped_after_its_fit_does_not_train_again(store: MlflowClient, tmp_path: Path) -> None:
    def stop(_: FitResult) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        fit(CONFIG, tmp_path, after=stop)
    (run,) = store.search_runs([experiment(store)])
    before = history(store, run.info.run_id)
    assert before["loss"], "its curves were there already"
    fit(asked_again(TrainConfig(resume=run.info.run_id)), tmp_path)
    assert history(store, run.info.run_id) == before
    assert store.get_run(run.info.run_id).data.tags["fit"] == "completed"


def test_the_same_options_may_be_given_again_and_the_free_ones_changed(stopped: str) -> None:
    again = asked_again(TrainConfig(resume=stopped, optimizer="adam", lr=0.05, checkpoint_seconds=0.5))
    assert again == CONFIG.model_copy(update={"resume": stopped, "checkpoint_seconds": 0.5})
    assert asked_again(again) == again
    assert asked_again(CONFIG) is CONFIG


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lr": 0.1}, "with --lr 0.05, and goes on with that; --lr 0.1 was given"),
        ({"optimizer": "sgd"}, "with --optimizer Adam, and goes on with that; --optimizer SGD was given"),
        ({"batch_size": 2}, "with no --batch-size, and goes on with that; --batch-size 2 was given"),
        ({"registered_name": "mine"}, "with no --register, and goes on with that; --register mine was given"),
        ({"no_register": True}, "with no --no-register, and goes on with that; --no-register was given"),
        ({"at": [[1.0], [2.0]]}, "with no --at, and goes on with that; --at 1;2 was given"),
    ],
)
def test_another_request_is_refused_by_name(given: dict[str, Any], told: str, stopped: str) -> None:
    with pytest.raises(RequestError) as refused:
        asked_again(TrainConfig(resume=stopped, **given))
    assert str(refused.value) == f"--resume {stopped} was started {told}"


def test_a_finished_run_says_so(store: MlflowClient, tmp_path: Path) -> None:
    run_id, _ = fit(CONFIG, tmp_path)
    with pytest.raises(RequestError, match=f"--resume {run_id}: that run is finished"):
        asked_again(TrainConfig(resume=run_id))


@pytest.mark.parametrize("error", [DivergedError("diverged: try less"), ParityError("it predicts otherwise")])
def test_a_run_that_would_end_the_same_way_again_says_so(error: Exception, store: MlflowClient, tmp_path: Path) -> None:
    def end(_: FitResult) -> None:
        raise error

    with pytest.raises(type(error)):
        fit(CONFIG, tmp_path, after=end)
    (run,) = store.search_runs([experiment(store)])
    assert not checkpoints_of(run.info.run_id).exists()
    with pytest.raises(RequestError, match=f"came to its end: {error}"):
        asked_again(TrainConfig(resume=run.info.run_id))


def test_a_run_that_failed_can_go_on(store: MlflowClient, tmp_path: Path) -> None:
    def end(_: FitResult) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fit(CONFIG, tmp_path, after=end)
    (run,) = store.search_runs([experiment(store)])
    assert run.info.status == "FAILED"
    fit(asked_again(TrainConfig(resume="latest")), tmp_path)
    now = store.get_run(run.info.run_id)
    assert (now.info.status, now.data.tags["reason"]) == ("FINISHED", "")


def test_where_there_is_no_such_run_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"--resume {'a' * 32}: MLflow at .* knows no such run"):
        asked_again(TrainConfig(resume="a" * 32))
    with pytest.raises(RequestError, match="--resume latest: no training"):
        asked_again(TrainConfig(resume="latest"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_here_is_told(store: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(CONFIG.model_copy(update={"checkpoint_seconds": 0}), tmp_path, after=_stopping_at(0))
    (run,) = store.search_runs([experiment(store)])
    assert not checkpoints_of(run.info.run_id).exists()
    with pytest.raises(RequestError, match=f"there are no checkpoints at {checkpoints_of(run.info.run_id)}"):
        asked_again(TrainConfig(resume=run.info.run_id))


def test_a_run_that_is_trained_now_is_left_alone(stopped: str, store: MlflowClient, tmp_path: Path) -> None:
    resumed = asked_again(TrainConfig(resume=stopped))
    with FileLock(checkpoints_of(stopped) / ".lock"):
        with pytest.raises(RequestError, match=f"process {os.getpid()} trains it now"):
            asked_again(TrainConfig(resume=stopped))
        with pytest.raises(RequestError, match="another process trains it"):  # asked a moment before
            fit(resumed, tmp_path)
    assert store.get_run(stopped).info.status == "KILLED", "it was not opened again"
    assert checkpoints_of(stopped).is_dir()


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is damaged"), ('{"lr": -1}', "is damaged"), ("{}", "MLflow remembers .*, but .* says")]
)
def test_a_request_that_was_changed_is_refused(text: str, told: str, stopped: str) -> None:
    (checkpoints_of(stopped) / "request.json").write_text(text)
    with pytest.raises(RequestError, match=told):
        asked_again(TrainConfig(resume=stopped))


def test_data_that_was_changed_is_refused(store: MlflowClient, tmp_path: Path, table_file: Any) -> None:
    rows = "x,y\n" + "".join(f"{i},{2 * i}\n" for i in range(10))
    config = table_file(rows, target="y", epochs=5)

    def stop(_: FitResult) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        fit(config, tmp_path, after=stop)
    Path(config.data).write_text(rows.replace("18", "19"))
    with pytest.raises(CheckpointError, match="another data"):
        fit(asked_again(TrainConfig(resume="latest")), tmp_path)


def test_damaged_checkpoints_fail_the_run_and_say_why(stopped: str, store: MlflowClient, tmp_path: Path) -> None:
    for file in checkpoints_of(stopped).glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        fit(asked_again(TrainConfig(resume=stopped)), tmp_path)
    assert store.get_run(stopped).info.status == "FAILED"


def test_the_trainings_of_a_comparison_keep_none(store: MlflowClient, tmp_path: Path) -> None:
    fit(CompareConfig(budget=5).training(), tmp_path, after=lambda _: None)
    assert not (tmp_path / "mlruns" / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_fit_between_two_steps_when_it_is_kept(number: signal.Signals, tmp_path: Path) -> None:
    told: list[int] = []

    def end(number: int, _: object) -> None:
        told.append(number)
        raise Stopped

    before = signal.signal(number, end)
    keeper = Keeper(CheckpointFolder(tmp_path), math.inf, {})
    try:
        with pytest.raises(Stopped), stopped_between_steps(keeper):  # noqa: PT012
            assert not keeper.due()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert not told, "the step that is being made is not torn apart"
            assert keeper.due()
            keeper.save({"step": 1})
            raise AssertionError("it went on")
        assert told == [number]
        assert keeper.load() == {"step": 1}
        assert signal.getsignal(number) is end, "the handler is put back"
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(number, before)


def test_a_second_signal_and_a_step_that_takes_too_long_end_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "SECONDS_TO_STOP", 0.1)
    keeper = Keeper(CheckpointFolder(tmp_path), math.inf, {})
    with pytest.raises(KeyboardInterrupt), stopped_between_steps(keeper):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopped_between_steps(keeper):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert time.monotonic() - started < 2
    assert list(tmp_path.iterdir()) == []


def test_signals_are_left_alone_in_other_threads_and_without_checkpoints(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_between_steps(None):
        assert signal.getsignal(signal.SIGINT) is before
    seen: list[Any] = []

    def elsewhere() -> None:
        with stopped_between_steps(Keeper(CheckpointFolder(tmp_path), math.inf, {})):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_another_version_of_torch_is_refused(
    stopped: str, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = asked_again(TrainConfig(resume=stopped))
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(CheckpointError, match=r"another torch: .*, not 99.0"):
        fit(resumed, tmp_path)
