import pytest

from fourfold.errors import RequestError
from tasks import services
from tasks.waiting import seconds_to_wait


@pytest.mark.parametrize(("text", "seconds"), [(None, 600), ("", 600), ("0", 0), ("2.5", 2.5)])
def test_the_variable_decides(text: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOURFOLD_SECONDS_TO_WAIT", raising=False)
    if text is not None:
        monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", text)
    assert seconds_to_wait() == seconds


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_what_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURFOLD_SECONDS_TO_WAIT", text)
    with pytest.raises(RequestError, match=f"FOURFOLD_SECONDS_TO_WAIT={text} is no number of seconds"):
        services.check_tracking()
