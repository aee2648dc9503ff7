"""Names and texts that would break or inject into whatever shows them: terminal, pages, pictures, SQL, a shell."""

import io
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name
from PIL import Image
from pydantic import ValidationError

from flows import predict_flow, train_flow, verify_flow
from fourfold.configuration import LONGEST_NAME, PredictConfig, TrainConfig, VerifyConfig
from fourfold.errors import RequestError, visible
from fourfold.parity import ParityReport
from tasks import command_line, reporting, services
from tasks.comparison_page import comparison_page
from tasks.draw import draw
from tasks.panels import Curve, Panel
from tasks.parity_page import parity_page
from tasks.reporting import Table, publish
from tasks.terminal import show
from tasks.tracking import metric_key

HOSTILE = {
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "the end of a script": "</script><script>alert(1)</script>",
    "escapes": "\x1b[2J\x1b]0;owned\x07\r\x08",
    "C1 escapes": "\x9b2J",
    "turned": "abc\u202egnp.exe\u2066",
    "quotes": "a'b\"c`d",
    "lines": "a\nb\r\nc\u2028d",
    "emoji": "😀👩\u200d🚀",
    "right to left": "שלום",
    "Markdown": "[a](javascript:alert(1)) ![b](http://example.org/b.png) **c** | d",
    "SQL": "'; drop table runs; --",
    "a shell": "$(touch x) `touch x` ; touch x",
    "mathematics": "$\\frac{$ \\x_{^",
    "a path": "../../etc/passwd",
    "a template": "{{7*7}}{0}%s${x}",
    "NUL": "a\0b",
    "long": "x" * 5000,
}
EACH = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
TEXTS = st.text(st.characters(), max_size=60) | st.sampled_from(list(HOSTILE.values()))
RARE = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning"),
]


def is_harmless(shown: str) -> bool:
    """Whether a terminal only prints: nothing but its line feeds is a control, turns text or is half a letter."""
    controls = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {0x0A}
    return not any(ord(letter) in controls or 0xD800 <= ord(letter) < 0xE000 for letter in shown)


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@given(TEXTS)
@RARE
def test_what_is_made_visible_is_harmless_and_says_the_same(text: str) -> None:
    shown = visible(text)
    assert is_harmless(shown)
    assert "\n" not in shown
    assert visible(shown) == shown
    assert shown == text or not text.isprintable()


class TestTerminal:
    @given(name=TEXTS, value=TEXTS, reason=TEXTS)
    @RARE
    def test_a_result_and_its_reason_are_printed_as_plain_text(self, name: str, value: str, reason: str) -> None:
        result: Any = SimpleNamespace(
            rows=lambda: {"status": "failed", name: value}, as_json=lambda: {"reason": reason},
            tables=lambda: (Table("drift", ("column", name), ((value, "1"),)),),
        )  # fmt: skip
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        show(result, out)
        out.seek(0)
        assert is_harmless(out.read())
        for error in (RequestError(reason), ValueError(reason)):
            assert is_harmless(command_line._one_line(error))
            assert "\n" not in command_line._one_line(error)

    def test_a_line_feed_in_a_name_makes_no_row_of_its_own(self) -> None:
        result: Any = SimpleNamespace(rows=lambda: {"drift": "see a\nstatus registered"}, tables=lambda: ())
        out = io.StringIO()
        show(result, out)
        assert out.getvalue().splitlines() == ["drift  see a\\nstatus registered"]

    @EACH
    def test_a_wrong_option_is_refused_in_one_harmless_line(
        self, text: str, capsys: pytest.CaptureFixture[str], interpreter: None
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            command_line.read("train", TrainConfig, "help", ["--loss", text])
        assert ended.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert is_harmless(err)

    def test_a_traceback_is_harmless_as_well(self, capsys: pytest.CaptureFixture[str], interpreter: None) -> None:
        def work(config: Any) -> Any:
            raise ValueError(HOSTILE["escapes"])

        with pytest.raises(SystemExit):
            command_line.run(command_line.Request(TrainConfig(), False, True), "train", work)
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert is_harmless(shown)

    def test_one_that_cannot_spell_a_letter_shows_the_rest(self) -> None:
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        show(SimpleNamespace(rows=lambda: {"drift": "see Höhe 😀"}, tables=lambda: ()), out)
        out.seek(0)
        assert out.read() == "drift  see H\\xf6he \\U0001f600\n"


class TestPages:
    @EACH
    def test_a_parity_report_shows_it_and_nothing_else(self, text: str) -> None:
        def page(one: str) -> Page:
            report = ParityReport("failed", one, operators=(one,), notes=(one,), weights={one: one}, allowance=one)
            return Page(parity_page(report, one))

        plain, hostile = page("plain"), page(text)
        assert hostile.tags == plain.tags
        assert hostile.attributes == plain.attributes
        assert re.split(r"[\r\n\0]", text)[0] in hostile.text

    @EACH
    def test_a_comparison_shows_it_and_nothing_else(self, text: str) -> None:
        def page(one: str) -> Page:
            x = np.array([1.0, 2.0])
            curve = Curve(one, "#0072b2", "solid", x, x, x, x, (1.0, 1.0))
            panel = Panel("loss", one, "x", "y", False, False, one, (curve,))
            return Page(comparison_page(one, {one: one}, (Table("t", (one,), ((one,),)),), (panel,), (one,)))

        plain, hostile = page("plain"), page(text)
        assert hostile.tags == plain.tags
        assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]

    @given(name=TEXTS, value=TEXTS)
    @RARE
    def test_prefects_page_has_one_row_each_and_no_link_or_picture(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[dict[str, str]] = []
        monkeypatch.setattr(reporting, "flow_run", SimpleNamespace(id="a-flow-run"))
        monkeypatch.setattr(
            reporting, "create_markdown_artifact", lambda text, **other: made.append({"text": text, **other})
        )
        publish("train", value, {name: value}, {}, None)
        lines = made[0]["text"].split("\n")
        assert len(lines) == 4
        row = lines[-1].replace("\\\\", "")
        assert row.replace("\\|", "").count("|") == 3
        for sign in "[]`*":
            assert sign not in row.replace(f"\\{sign}", "")
        assert "<" not in row
        assert is_harmless(made[0]["text"])
        assert "[" not in made[0]["description"].replace("\\\\", "").replace("\\[", "")


@EACH
def test_a_picture_is_drawn_whatever_columns_are_called(text: str, tmp_path: Path) -> None:
    x = np.array([[1.0], [2.0], [3.0]])
    arrays = {"loss": np.array([3.0, 1.0]), "loss_label": np.array("loss")}
    arrays |= {"features": np.array([text]), "targets": np.array([text])}
    for kind in ("training", "held_out"):
        arrays |= {f"{kind}_x": x, f"{kind}_y": x, f"{kind}_prediction": x}
    draw(arrays, tmp_path / "fit.png")
    with Image.open(tmp_path / "fit.png") as picture:
        picture.load()
        assert picture.size == (1100, 440)


class TestRegistry:
    @pytest.mark.parametrize("text", ["a\x1b[2J", "a\rb", "a\0b", "a\u202eb", "a\ud800", "a'b", "a/b", "x" * 251, "\n"])
    def test_a_name_that_is_no_name_is_refused(self, text: str) -> None:
        with pytest.raises(ValidationError, match="a name without the characters"):
            TrainConfig(registered_name=text)

    @EACH
    def test_the_name_that_a_file_gives_is_one_that_could_be_typed(self, text: str) -> None:
        name = TrainConfig(data=f"{text.replace('/', '')}.csv").model_name
        assert TrainConfig(registered_name=name).model_name == name
        assert len(name) <= LONGEST_NAME
        assert is_harmless(name)

    @pytest.mark.parametrize("name", ["$(touch x)", "a; drop table runs", "-- a", "😀", "{0}", "a|b", "<b>", "a`b\\"])
    def test_what_may_be_a_name_is_found_again_in_sql(self, name: str, store: MlflowClient, tmp_path: Path) -> None:
        assert TrainConfig(registered_name=name).model_name == name
        for one in (name, "another"):
            store.create_registered_model(one)
            store.create_model_version(one, str(tmp_path))
        (found,) = store.search_model_versions(f"name = '{name}'")
        assert found.name == name

    @given(TEXTS)
    @RARE
    def test_every_name_gives_a_metric_that_mlflow_takes(self, text: str) -> None:
        encodable = text.encode("utf-8", "replace").decode()
        _validate_metric_name(metric_key(encodable))


@EACH
def test_the_command_that_shows_the_runs_is_one_argument_each(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:////tmp/{text.replace(chr(0), '')}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert shlex.split(services.ui_command())[1:] == ["ui", "--backend-store-uri", uri]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run flows as functions: their steps without Prefect."""
    for module in (train_flow, predict_flow, verify_flow):
        for name, value in list(vars(module).items()):
            if hasattr(value, "fn") and hasattr(value, "task_run_name"):
                monkeypatch.setattr(module, name, value.fn)


def test_columns_of_every_such_name_are_learned_registered_predicted_and_proved(
    in_process: None, store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All at once, in one file; of its column a feature is the name, of its target a variant."""
    monkeypatch.chdir(tmp_path)
    names = [text for text in HOSTILE.values() if "," not in text]
    x = np.random.default_rng(0).normal(size=(80, len(names)))
    target = f"t{HOSTILE['HTML']}"
    table: Callable[[], pa.Table] = lambda: pa.table(  # noqa: E731
        dict(zip(names, x.T, strict=True)) | {target: x.sum(axis=1)}
    )
    pq.write_table(table(), tmp_path / "hostile.parquet")
    config = TrainConfig(data="hostile.parquet", target=(target,), optimizer="LBFGS", lr=1, epochs=5)
    trained = train_flow.train_flow.fn(config)
    assert trained.status == "registered", trained.reason
    run = store.get_run(trained.run_id)
    assert "picture" not in run.data.tags, "it was drawn"
    assert json.loads(json.dumps(trained.as_json()))["status"] == "registered"
    for output in ("o.parquet", "o.csv"):
        asked = PredictConfig(model=trained.registered.uri, input="hostile.parquet", output=output, keep=tuple(names))
        predicted = predict_flow.predict_flow.fn(asked)
        read = pd.read_parquet if output == "o.parquet" else pd.read_csv
        assert len(read(output).columns) == len(names) + 1
        out = io.StringIO()
        show(predicted, out)
        assert is_harmless(out.getvalue())
    assert list(pd.read_parquet("o.parquet")) == [*names, f"predicted_{target}"]
    assert verify_flow.verify_flow.fn(VerifyConfig(model=trained.registered.uri)).status == "verified"
    for page in tmp_path.rglob("*.html"):
        tags = Page(page.read_text()).tags
        assert "img" not in tags
        # Those of the report are bokeh's library, how loud it is, and the plots.
        assert tags.count("script") == (3 if page.name == "report.html" else 0), page
    assert not (tmp_path / "x").exists(), "no shell has read a name"
    capsys.readouterr()
