"""Progress is drawn in a terminal, and told line by line, in time, everywhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgebuild.report import progress
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.silence import Silence


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=240, force_terminal=is_terminal)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_tells_every_step_and_what_is_said(is_terminal: bool) -> None:
    to = console(is_terminal)
    with progress.shown(to) as shown, shown.step("Working", total=2) as step:
        step.advance("first")
        shown.say("halfway")
        step.advance("second")
    assert "halfway" in written(to)
    assert "2/2" in written(to)


def test_a_file_has_a_line_as_soon_as_a_step_has_ended() -> None:
    to = console(is_terminal=False)
    with progress.shown(to) as shown:
        with shown.step("Reading [all]"):
            assert not written(to)
        assert written(to).split() == ["Reading", "[all]", "1/1", "0:00:00"]


def test_a_file_hears_now_and_then_of_a_step_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    to = console(is_terminal=False)
    with progress.shown(to) as shown, shown.step("Training", total=100) as step:
        for _ in range(100):
            now[0] += 1.5
            step.advance("loss 0.1")
    lines = written(to).splitlines()
    assert lines[0].split() == ["Training", "7/100", "0:00:10", "loss", "0.1"]
    assert lines[-1].split() == ["Training", "100/100", "0:02:30"]
    assert len(lines) == 15


def test_a_step_that_failed_says_how_far_it_came() -> None:
    to = console(is_terminal=False)
    with progress.shown(to) as shown, pytest.raises(ValueError, match="broken"):
        break_off(shown)
    assert "1/4" in written(to)


def break_off(shown: Progress) -> None:
    with shown.step("Exporting", total=4) as step:
        step.advance()
        raise ValueError("broken")


def test_silence_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Silence().step("Working", total=2) as step:
        step.advance("first")
        step.say("aloud")
    assert capfd.readouterr() == ("", "")
