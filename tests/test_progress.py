"""Bars: silent for three seconds, gone at the end, and few lines where nothing can be drawn over."""

import io
import sys

import pytest

from decant.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_short_work_says_nothing_and_all_is_worked_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([3, 1, 2], "rounding", "layers")) == [3, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stream", "seconds"), [(io.StringIO(), 10), (Terminal(), 0.2)], ids=["log", "terminal"]
)
def test_a_log_gets_a_line_in_ten_seconds(
    stream: io.StringIO, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(None, "teacher", "images", total=5, delay=0) as bar:
        assert bar.mininterval == seconds
        for _ in range(5):
            bar.update()
    first, *others = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    assert first.startswith("teacher:   0%")
    assert "0/5" in first
    assert len(others) <= 1
