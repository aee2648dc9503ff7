from html.parser import HTMLParser

import pytest

from fourfold.parity import Case, ParityReport
from tasks.parity_page import parity_page

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The text of a page, and whether each element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.loaded = "", [""], []  # type: ignore[var-annotated]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(**changes: object) -> ParityReport:
    cases = (
        Case("training rows", "onnxruntime", 3, True, 1e-7, 2e-7, 1.0, 2.0, 3.0, worst_ratio=0.25, worst_row=(1.0,)),
        Case("far out", "onnx.reference", 7, nan_count=2, undecided=1, reason="row 0: other", worst_row=(1.0,) * 9),
    )
    known = {"sha256": "ab" * 32, "bytes": 890, "operators": ("Gemm",), "weights": {"w": "transposed"}, "cases": cases}
    return ParityReport("passed", **(known | changes))  # type: ignore[arg-type]


def test_the_page_tells_the_verdict_and_every_case_and_loads_nothing() -> None:
    page = Page(parity_page(report(allowance="2 units", notes=("no third opinion",)), "SGD lr=0.01 line-linear"))
    assert page.open == [""]
    assert page.loaded == []
    for text in ("passed", "SGD lr=0.01", "ab" * 32, "Gemm", "transposed", "2 units", "no third opinion",
                 "training rows", "onnx.reference", "0.25", "1e-07"):  # fmt: skip
        assert text in page.text, text


def test_the_case_that_uses_most_of_what_is_allowed_comes_first() -> None:
    text = Page(
        parity_page(report(cases=(Case("mild", "a", 1, worst_ratio=0.1), Case("wild", "b", 1, worst_ratio=0.9))), "")
    ).text
    assert text.index("wild") < text.index("mild")


@pytest.mark.parametrize("reason", ["the file <b>is</b> & was", "row 0: 1 < 2"])
def test_a_report_on_a_refused_file_is_a_page_too_and_nothing_in_it_is_taken_for_html(reason: str) -> None:
    page = Page(parity_page(ParityReport("failed", reason), "<script>"))
    assert reason in page.text
    assert "<script>" in page.text
    assert "not read" in page.text
