import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from fourfold.configuration import TrainConfig
from fourfold.datasets import Dataset
from fourfold.errors import ParityError, RegistrationError, RequestError
from fourfold.onnx_file import ExportedModel, file_sha256
from fourfold.parity import ParityReport
from tasks import register as step
from tasks.build_model import build
from tasks.evaluate import Accuracy, Evaluation
from tasks.export_onnx import export_onnx
from tasks.make_data import load
from tasks.register import Registered, improvement, register
from tasks.request import check
from tasks.tracking import recorded_run
from tasks.verify_onnx import verify_onnx

LinearFile = Callable[..., ExportedModel]
Registering = Callable[..., Registered]
Both = Callable[[Callable[[str], None], Callable[[str], None]], dict[str, Registered]]

# MLflow's own code, where it writes the input example with the newest pandas and where it imports its flavors;
# nothing here can mend it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "line-linear"
# Columns of y = 2 x, for models that are a little off.
X = [[1.0], [2.0], [3.0]]
Y = [[2.0], [4.0], [6.0]]


def passed(exported: ExportedModel) -> ParityReport:
    return ParityReport("passed", sha256=exported.sha256)


def judged(exported: ExportedModel, data: Dataset) -> Evaluation:
    """Judge a file by onnxruntime."""
    judged_on = data.judged_on
    x, y = data.at_hand[judged_on]
    error = answers(exported.path, x.numpy()) - y.numpy()
    rmse = float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
    return Evaluation(1.0, judged_on, Accuracy(rmse, float(np.abs(error).mean()), 0.9), (), None)


def answers(path: Path | str, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    dtype = np.float64 if given.type == "tensor(double)" else np.float32
    prediction: np.ndarray = session.run(None, {given.name: x.astype(dtype)})[0]
    return prediction


@pytest.fixture
def registering(store: MlflowClient, linear_file: LinearFile, dataset: Callable[..., Dataset]) -> Registering:
    """Register y = x w^T + b in a run of its own."""

    def make(
        w: Any,
        b: Any = (0.0,),
        *,
        data: Dataset | None = None,
        config: TrainConfig | None = None,
        dtype: type = np.float32,
        alter: Callable[[ExportedModel, ParityReport], tuple[ExportedModel, ParityReport]] = lambda *both: both,
        judge: Callable[[ExportedModel, Dataset], Evaluation] = judged,
    ) -> Registered:
        used = data or dataset(X, Y, features=("x",), targets=("y",))
        number = len(list(store.search_registered_models())) * 100 + np.random.default_rng().integers(10**9)
        columns = {"features": json.dumps(used.features), "targets": json.dumps(used.targets)}
        exported = linear_file(w, b, name=f"{number}/model.onnx", dtype=dtype, metadata=columns)
        file, report = alter(exported, passed(exported))
        with recorded_run("train", "a run", {}, {}) as record:
            return register.fn(config or TrainConfig(), used, judge(exported, used), file, report, record)

    return make


def aliases(store: MlflowClient, name: str = NAME) -> dict[str, str]:
    return {alias: str(version) for alias, version in store.get_registered_model(name).aliases.items()}


class TestChampion:
    def test_the_first_version_is_champion(self, registering: Registering, store: MlflowClient) -> None:
        made = registering([[1.5]])
        assert (made.name, made.version, made.alias, made.uri) == (NAME, "1", "champion", f"models:/{NAME}/1")
        assert made.decision == "the first version"
        assert aliases(store) == {"champion": "1"}

    def test_a_better_one_on_the_same_rows_replaces_it(self, registering: Registering, store: MlflowClient) -> None:
        registering([[1.5]])
        made = registering([[1.9]])
        assert (made.version, made.alias) == ("2", "champion")
        assert aliases(store) == {"champion": "2"}
        assert made.decision == (
            "RMSE 0.216025 on the training rows is below the 1.08012 of version 1: improvement 0.8, asked for 0"
        )

    @pytest.mark.parametrize("w", [1.4, 1.5, 2.6], ids=["worse", "a tie", "worse on the other side"])
    def test_a_worse_one_and_a_tie_become_challenger(
        self, w: float, registering: Registering, store: MlflowClient
    ) -> None:
        registering([[1.5]])
        made = registering([[w]])
        assert (made.version, made.alias) == ("2", "challenger")
        assert aliases(store) == {"champion": "1", "challenger": "2"}
        assert "is not below the" in made.decision

    def test_a_tie_is_one_whatever_torch_measured(self, registering: Registering, store: MlflowClient) -> None:
        """Of the same weights, torch's number is a little lower or higher than onnxruntime's."""

        def by_torch(exported: ExportedModel, data: Dataset) -> Evaluation:
            evaluation = judged(exported, data)
            accuracy = replace(evaluation.accuracy, rmse=evaluation.accuracy.rmse * (1 - 1e-7))
            return replace(evaluation, accuracy=accuracy)

        registering([[1.5]])
        assert registering([[1.5]], judge=by_torch).alias == "challenger"
        assert aliases(store) == {"champion": "1", "challenger": "2"}

    @pytest.mark.parametrize(
        ("asked", "alias", "said"),
        [(0.79, "champion", "is below the"), (0.81, "challenger", "is not enough below the")],
    )
    def test_a_new_champion_is_as_much_better_as_was_asked_for(
        self, asked: float, alias: str, said: str, registering: Registering, store: MlflowClient
    ) -> None:
        """The error of 1.9 is a fifth of that of 1.5."""
        registering([[1.5]])
        made = registering([[1.9]], config=TrainConfig(min_improvement=asked))
        assert made.alias == alias
        assert said in made.decision
        assert made.decision.endswith(f"of version 1: improvement 0.8, asked for {asked}")
        tags = store.get_model_version(NAME, "2").tags
        assert float(tags["min_improvement"]) == asked
        assert float(tags["improvement"]) == pytest.approx(0.8, rel=1e-6)

    @pytest.mark.parametrize(
        ("champion", "new", "share"),
        [
            (0.0, 0.0, 0.0),
            (0.0, 0.5, -np.inf),
            (np.nan, 0.5, 1.0),
            (np.inf, 0.5, 1.0),
            (0.5, np.nan, -np.inf),
            (0.5, np.inf, -np.inf),
            (np.nan, np.nan, -np.inf),
            (np.inf, np.inf, -np.inf),
            (0.5, 0.0, 1.0),
        ],
    )
    def test_the_share_of_errors_that_are_zero_or_no_number(self, champion: float, new: float, share: float) -> None:
        assert improvement(new, champion) == share

    @pytest.mark.parametrize(
        ("champion", "new", "asked", "alias", "improvement"),
        [
            (0.0, 0.0, 0.0, "challenger", 0.0),
            (np.nan, 0.5, 0.99, "champion", 1.0),
            (0.5, np.inf, 0.0, "challenger", -np.inf),
        ],
    )
    def test_a_new_version_beside_errors_that_are_zero_or_no_number(
        self,
        champion: float,
        new: float,
        asked: float,
        alias: str,
        improvement: float,
        registering: Registering,
        store: MlflowClient,
    ) -> None:
        """Of y = 2 x + b against y = 2 x, the error is b."""
        registering([[2.0]], [champion])
        made = registering([[2.0]], [new], config=TrainConfig(min_improvement=asked))
        assert made.alias == alias
        assert float(store.get_model_version(NAME, "2").tags["improvement"]) == improvement
        assert ("improvement" in made.decision) == np.isfinite(improvement), "a share that is none is not told"

    def test_the_champion_is_judged_anew_on_the_rows_of_now(
        self, registering: Registering, store: MlflowClient, dataset: Callable[..., Dataset]
    ) -> None:
        """It was perfect on the rows of its own day; on these, its old number does not count."""
        registering([[2.0]])
        data = dataset(X, [[3.1], [6.0], [9.0]], features=("x",), targets=("y",), sha256="e" * 64)
        made = registering([[3.0]], data=data)
        assert made.alias == "champion"
        tags = store.get_model_version(NAME, "2").tags
        squares = (np.array([2.0, 4.0, 6.0]) - np.array([3.1, 6.0, 9.0])) ** 2
        assert float(tags["champion_rmse"]) == pytest.approx(np.sqrt(squares.mean()), rel=1e-6)
        assert tags["champion_version"] == "1"

    def test_held_out_rows_decide_where_there_are_any(
        self, registering: Registering, dataset: Callable[..., Dataset]
    ) -> None:
        data = dataset(X, Y, test=([[1.0], [2.0]], [[3.0], [6.0]]), features=("x",), targets=("y",))
        registering([[2.0]], data=data)
        made = registering([[2.9]], data=data)
        assert made.alias == "champion"
        assert "on the held-out rows" in made.decision

    def test_a_champion_that_predicts_nothing_finite_is_replaced(
        self, registering: Registering, store: MlflowClient
    ) -> None:
        registering([[np.nan]])
        made = registering([[1.9]])
        assert made.alias == "champion"
        assert aliases(store) == {"champion": "2"}

    def test_a_champion_of_more_features_leaves_the_new_one_challenger(
        self, registering: Registering, store: MlflowClient, dataset: Callable[..., Dataset]
    ) -> None:
        config = TrainConfig(registered_name="houses")
        two = dataset([[1, 1], [2, 1], [3, 2]], Y, features=("area", "rooms"), targets=("price",))
        registering([[1.0, 0.5]], data=two, config=config)
        made = registering([[2.0]], data=dataset(X, Y, features=("area",), targets=("price",)), config=config)
        assert made.alias == "challenger"
        assert made.decision.startswith("version 1 cannot predict these rows: ")
        assert aliases(store, "houses") == {"champion": "1", "challenger": "2"}
        assert store.get_model_version("houses", "2").tags["decision"] == made.decision

    @pytest.mark.parametrize(
        ("features", "targets"),
        [(("rooms", "area"), ("price",)), (("width", "depth"), ("price",)), (("area", "rooms"), ("rent",))],
        ids=["the same in another order", "others of the same number", "another target"],
    )
    def test_a_champion_of_other_columns_leaves_the_new_one_challenger(
        self,
        features: tuple[str, ...],
        targets: tuple[str, ...],
        registering: Registering,
        store: MlflowClient,
        dataset: Callable[..., Dataset],
    ) -> None:
        """Its number would be that of columns that it never saw: nothing is compared."""
        config = TrainConfig(registered_name="houses")
        x = [[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]
        registering([[2.0, 0.0]], data=dataset(x, Y, features=("area", "rooms"), targets=("price",)), config=config)
        other = dataset(x, [[10.0], [30.0], [21.0]], features=features, targets=targets)
        made = registering([[0.0, 1.0]], data=other, config=config)
        assert made.alias == "challenger"
        assert aliases(store, "houses") == {"champion": "1", "challenger": "2"}

    def test_a_champion_whose_file_is_gone_leaves_the_new_one_challenger(
        self, registering: Registering, store: MlflowClient
    ) -> None:
        Path(registering([[1.5]]).path).unlink()
        made = registering([[1.9]])
        assert made.alias == "challenger"
        assert "cannot predict these rows" in made.decision

    def test_a_store_that_does_not_tell_the_champion_makes_none(
        self, registering: Registering, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only a name without a champion lets the first version be one; a fault of the store does not."""
        registering([[2.0]])

        def refuse(*_: object) -> None:
            raise MlflowException("(sqlite3.OperationalError) disk I/O error")

        monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", refuse)
        with pytest.raises(MlflowException, match="disk I/O error"):
            registering([[1.0]])
        assert aliases(store) == {"champion": "1"}

    def test_a_name_whose_champion_was_taken_away_gets_one_again(
        self, registering: Registering, store: MlflowClient
    ) -> None:
        registering([[1.9]])
        store.delete_registered_model_alias(NAME, "champion")
        assert registering([[1.5]]).alias == "champion"


class TestTwoAtOnce:
    """Two runs that register at the same time: whoever is last, the better one is champion."""

    @pytest.fixture(autouse=True)
    def _one_writes_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What comes before the decision is not the matter here, and MLflow's code for it is not made for threads."""
        alone = threading.Lock()

        def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                with alone:
                    return real(*arguments, **options)

            return call

        for name in ("_log_and_register", "_differs_from_proved"):
            monkeypatch.setattr(step, name, guarded(getattr(step, name)))

    @pytest.fixture
    def moved(self) -> dict[str, threading.Event]:
        return {"better": threading.Event(), "middling": threading.Event()}

    @pytest.fixture
    def both(
        self, registering: Registering, moved: dict[str, threading.Event], monkeypatch: pytest.MonkeyPatch
    ) -> Both:
        """Register two that beat the present champion, each from a thread that bears its name.

        Neither goes on before both have read who is champion; `scored` and `moving` are called then, and before an
        alias moves. Who has moved one is in `moved`.
        """

        def register_both(scored: Callable[[str], None], moving: Callable[[str], None]) -> dict[str, Registered]:
            registering([[1.5]])
            barrier, met = threading.Barrier(2, timeout=60), set[str]()
            real_predictor, real_move = step.predictor, MlflowClient.set_registered_model_alias

            def predictor(path: Path) -> Callable[[np.ndarray], np.ndarray]:
                name = threading.current_thread().name
                if name not in met:
                    met.add(name)
                    barrier.wait()
                    scored(name)
                return real_predictor(path)

            def move(client: MlflowClient, *arguments: Any) -> None:
                name = threading.current_thread().name
                moving(name)
                real_move(client, *arguments)
                moved[name].set()

            def named(name: str, w: float) -> Registered:
                threading.current_thread().name = name
                return registering([[w]])

            monkeypatch.setattr(step, "predictor", predictor)
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move)
            with ThreadPoolExecutor(2) as pool:
                made = {name: pool.submit(named, name, w) for name, w in (("better", 1.9), ("middling", 1.7))}
                return {name: one.result(120) for name, one in made.items()}

        return register_both

    def test_one_that_read_the_former_champion_decides_anew(
        self, both: Both, moved: dict[str, threading.Event], store: MlflowClient
    ) -> None:
        """The middling one goes on when the better one is champion."""

        def scored(name: str) -> None:
            assert name == "better" or moved["better"].wait(60)

        made = both(scored, lambda name: None)
        assert (made["better"].alias, made["middling"].alias) == ("champion", "challenger")
        assert aliases(store) == {"champion": made["better"].version, "challenger": made["middling"].version}
        tags = store.get_model_version(NAME, made["middling"].version).tags
        assert tags["champion_version"] == made["better"].version
        assert tags["decision"] == made["middling"].decision

    def test_one_that_is_about_to_move_the_alias_is_waited_for(
        self, both: Both, moved: dict[str, threading.Event], store: MlflowClient
    ) -> None:
        """Between its last look and its move, the middling one gives the better one a second to come in between."""
        middling_moves = threading.Event()

        def scored(name: str) -> None:
            assert name == "middling" or middling_moves.wait(60)

        def moving(name: str) -> None:
            if name == "middling":
                middling_moves.set()
                moved["better"].wait(1)

        made = both(scored, moving)
        assert aliases(store)["champion"] == made["better"].version
        tags = store.get_model_version(NAME, made["better"].version).tags
        assert tags["champion_version"] == made["middling"].version


class TestGate:
    @pytest.mark.parametrize(
        "alter",
        [
            lambda exported, report: (exported, replace(report, verdict="failed", reason="row 0")),
            lambda exported, report: (exported, replace(report, sha256="0" * 64)),
            lambda exported, report: (replace(exported, sha256="0" * 64), report),
        ],
        ids=["that failed", "of another file", "while the file is another"],
    )
    def test_a_report_that_is_none_of_this_file_registers_nothing(
        self, alter: Any, registering: Registering, store: MlflowClient
    ) -> None:
        with pytest.raises(ParityError, match="only the very file that passed the gate"):
            registering([[2.0]], alter=alter)
        assert list(store.search_registered_models()) == []
        assert store.search_logged_models([store.get_experiment_by_name("train").experiment_id]) == []

    def test_the_stored_file_has_the_verified_bytes(self, registering: Registering, tmp_path: Path) -> None:
        made = registering([[1.5]])
        stored = Path(made.path)
        assert stored.is_relative_to(tmp_path / "mlruns"), "of the store itself and not of a copy"
        assert file_sha256(stored) == made.sha256
        (original,) = tmp_path.glob("*/model.onnx")
        assert stored.read_bytes() == original.read_bytes()

    def test_a_file_of_torchs_exporter_keeps_its_bytes_too(
        self, store: MlflowClient, tmp_path: Path, table_file: Callable[..., TrainConfig]
    ) -> None:
        """From the rows to the version, as the flow goes; the weights are enough for a file of their own."""
        rows = "area,rooms,price\n" + "".join(f"{i},{i % 3},{2 * i + 1}\n" for i in range(12))
        config = table_file(rows, target="price", model="mlp", hidden=(32, 32))
        data = load(config)
        built = build(config, data)
        with recorded_run("train", "a run", {}, {}) as record:
            exported = export_onnx.fn(config, built, data, record, tmp_path)
            parity = verify_onnx.fn(config, built, data, exported, record, tmp_path)
            made = register.fn(config, data, judged(exported, data), exported, parity, record)
        assert Path(made.path).read_bytes() == exported.path.read_bytes()
        assert made.sha256 == exported.sha256 == parity.sha256
        assert made.name == "rows-mlp"

    def test_a_file_that_was_changed_after_the_gate_is_refused(
        self, registering: Registering, store: MlflowClient, linear_file: LinearFile
    ) -> None:
        registering([[1.5]])

        def change(exported: ExportedModel, report: ParityReport) -> tuple[ExportedModel, ParityReport]:
            linear_file([[2.000001]], [0.0], name=str(exported.path))
            return exported, report

        with pytest.raises(RegistrationError, match=rf"models:/{NAME}/2 .* it holds other bytes; .*no alias was moved"):
            registering([[2.0]], alter=change)
        assert aliases(store) == {"champion": "1"}
        assert len(store.search_model_versions(f"name = '{NAME}'")) == 1, "the version was taken back"

    def test_a_version_that_predicts_otherwise_when_it_is_loaded_back_is_taken_back(
        self, registering: Registering, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What serves is MLflow's loader, not the file alone."""

        class Other:
            def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
                return (2.0001 * rows).astype(np.float32)

        monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda uri: Other())
        with pytest.raises(RegistrationError, match=r"MLflow predicts .* it was taken back"):
            registering([[2.0]])
        assert aliases(store) == {}
        assert not store.search_model_versions(f"name = '{NAME}'")

    def test_golden_predictions_that_do_not_fit_the_file_are_found_before_the_alias_moves(
        self, registering: Registering, store: MlflowClient, linear_file: LinearFile
    ) -> None:
        def exchange(exported: ExportedModel, report: ParityReport) -> tuple[ExportedModel, ParityReport]:
            other = linear_file([[3.0]], [0.0], name="other/model.onnx")  # as long as the first
            other.path.with_name("golden.parquet").replace(exported.path.with_name("golden.parquet"))
            return exported, report

        with pytest.raises(RegistrationError, match="onnxruntime predicts"):
            registering([[2.0]], alter=exchange)
        assert aliases(store) == {}

    def test_a_store_that_gives_back_other_bytes_is_refused(
        self, registering: Registering, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = step.file_sha256

        def altered(path: Path) -> str:
            path.write_bytes(path.read_bytes() + b"\0")
            return real(path)

        monkeypatch.setattr(step, "file_sha256", altered)
        with pytest.raises(RegistrationError, match="no alias was moved"):
            registering([[2.0]])
        assert aliases(store) == {}


class TestRetry:
    def test_a_second_call_for_the_same_run_makes_no_second_version_and_gives_the_same(
        self, store: MlflowClient, linear_file: LinearFile, dataset: Callable[..., Dataset]
    ) -> None:
        exported, data = linear_file([[1.9]], [0.0]), dataset(X, Y, features=("x",), targets=("y",))
        with recorded_run("train", "a run", {}, {}) as record:
            first, second = (
                register.fn(TrainConfig(), data, judged(exported, data), exported, passed(exported), record)
                for _ in range(2)
            )
        assert len(store.search_model_versions(f"name = '{NAME}'")) == 1
        assert (second.version, second.sha256) == ("1", first.sha256)
        assert second.alias == "champion"
        assert aliases(store) == {"champion": "1"}

    def test_a_retry_after_a_fault_keeps_what_was_decided_against_the_champion_before(
        self, store: MlflowClient, registering: Registering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The step failed after the alias was moved, where only the run's own tags were left to write."""
        registering([[1.5]])
        exported: list[ExportedModel] = []

        def keep(file: ExportedModel, report: ParityReport) -> tuple[ExportedModel, ParityReport]:
            exported.append(file)
            return file, report

        real = MlflowClient.set_registered_model_alias

        def move_and_fail(client: MlflowClient, *arguments: Any) -> None:
            real(client, *arguments)
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
            raise MlflowException("the connection was lost")

        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move_and_fail)
        fn = register.fn

        def twice(*arguments: Any) -> Registered:
            with pytest.raises(MlflowException, match="the connection was lost"):
                fn(*arguments)
            return fn(*arguments)

        monkeypatch.setattr(register, "fn", twice)
        made = registering([[1.9]], alter=keep)
        assert (made.version, made.alias) == ("2", "champion")
        assert aliases(store) == {"champion": "2"}

    def test_a_run_that_registers_under_two_names_makes_a_version_of_each(
        self, store: MlflowClient, linear_file: LinearFile, dataset: Callable[..., Dataset]
    ) -> None:
        exported, data = linear_file([[1.9]], [0.0]), dataset(X, Y, features=("x",), targets=("y",))
        with recorded_run("train", "a run", {}, {}) as record:
            for name in ("first", "second"):
                config = TrainConfig(registered_name=name)
                register.fn(config, data, judged(exported, data), exported, passed(exported), record)
        assert sorted(model.name for model in store.search_registered_models()) == ["first", "second"]

    def test_the_step_is_retried(self) -> None:
        assert register.retries == 2


class TestWhatIsKept:
    def test_tags_tell_the_decision_and_its_numbers(
        self, registering: Registering, store: MlflowClient, dataset: Callable[..., Dataset]
    ) -> None:
        registering([[1.5]])
        made = registering([[1.9]])
        tags = store.get_model_version(NAME, "2").tags
        squares = (np.array([1.9, 3.8, 5.7]) - np.array([2.0, 4.0, 6.0])) ** 2
        assert float(tags["rmse"]) == pytest.approx(np.sqrt(squares.mean()), rel=1e-5)
        assert float(tags["champion_rmse"]) > float(tags["rmse"])
        assert tags["decision"] == made.decision
        assert (tags["sha256"], tags["parity"], tags["judged_on"]) == (made.sha256, "passed", "training")
        assert tags["data_sha256"] == "d" * 64
        (run,) = store.search_runs(
            [store.get_experiment_by_name("train").experiment_id], "tags.`model.version` = 'models:/line-linear/2'"
        )
        assert run.info.run_id in tags["run"]
        assert run.data.tags["model.alias"] == "champion"
        assert run.data.tags["model.decision"] == made.decision

    def test_the_default_experiment_keeps_nothing(
        self, registering: Registering, store: MlflowClient, tmp_path: Path
    ) -> None:
        registering([[1.5]])
        assert store.search_runs(["0"]) == []
        assert store.search_logged_models(["0"]) == []
        (logged,) = store.search_logged_models([store.get_experiment_by_name("train").experiment_id])
        assert logged.status == "READY"
        assert store.get_model_version(NAME, "1").run_id == logged.source_run_id
        assert [path.name for path in (tmp_path / "mlruns").iterdir() if path.is_dir()] == ["train"]

    @pytest.mark.parametrize(("dtype", "output"), [("float32", "float"), ("float64", "double")])
    def test_the_signature_names_the_columns_in_order(
        self, dtype: Any, output: str, registering: Registering, dataset: Callable[..., Dataset]
    ) -> None:
        features = ("rooms", "living area", "Höhe")
        data = dataset(np.eye(3) + 1, Y, features=features, targets=("price",))
        config = TrainConfig(registered_name="houses", dtype=dtype)
        registering([[1.0, 2.0, 3.0]], data=data, config=config, dtype=np.float64 if dtype == "float64" else np.float32)
        signature = mlflow.models.get_model_info("models:/houses/1").signature
        assert signature is not None
        assert signature.inputs.input_names() == list(features)
        assert [(column.type.name, column.name) for column in signature.outputs] == [(output, "price")]

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_mlflow_predicts_as_onnxruntime_does_whatever_the_order_of_the_columns(
        self, dtype: Any, registering: Registering, dataset: Callable[..., Dataset]
    ) -> None:
        data = dataset(np.eye(3) + 1, Y, features=("rooms", "area", "age"), targets=("price",))
        config = TrainConfig(registered_name="houses", dtype=dtype)
        made = registering(
            [[1.25, -2.5, 0.3]],
            [7.1],
            data=data,
            config=config,
            dtype=np.float64 if dtype == "float64" else np.float32,
        )
        x = np.random.default_rng(6).normal(size=(9, 3)) * 100
        frame = pd.DataFrame(x, columns=["rooms", "area", "age"])[["age", "rooms", "area"]]
        predicted = mlflow.pyfunc.load_model(made.uri).predict(frame)
        np.testing.assert_array_equal(np.asarray(predicted).reshape(-1, 1), answers(made.path, x))

    def test_a_missing_column_is_refused(self, registering: Registering) -> None:
        made = registering([[2.0]])
        with pytest.raises(ValueError, match="column 'x' is missing; the model takes x"):
            mlflow.pyfunc.load_model(made.uri).predict(pd.DataFrame({"z": [1.0]}))

    def test_what_it_needs_is_pinned(self, registering: Registering) -> None:
        made = registering([[2.0]])
        text = Path(mlflow.pyfunc.get_model_dependencies(made.uri)).read_text()
        assert f"onnxruntime=={onnxruntime.__version__}" in text
        assert "torch" not in text


class TestNames:
    @pytest.mark.parametrize("name", ["houses.v2", "50%", "o'neil", 'the "best"', "my houses", "Häuser"])
    def test_a_name_is_refused_before_the_training_or_can_be_registered(
        self, name: str, registering: Registering, store: MlflowClient
    ) -> None:
        """Found only at the last step, the whole training would be for nothing."""
        try:
            config = check(TrainConfig(registered_name=name))
        except (RequestError, ValueError):
            return
        assert registering([[2.0]], config=config).name == name
        assert aliases(store, name) == {"champion": "1"}

    @pytest.mark.parametrize("name", ["houses.v2.csv", "50%.csv", "o'neil.csv", "my houses.csv"])
    def test_a_file_may_be_called_anything(
        self, name: str, registering: Registering, store: MlflowClient, table_file: Callable[..., TrainConfig]
    ) -> None:
        config = check(table_file("x,y\n1,2\n2,4\n3,6\n", name, target="y", test_fraction=0))
        made = registering([[2.0]], config=config)
        assert aliases(store, made.name) == {"champion": "1"}
