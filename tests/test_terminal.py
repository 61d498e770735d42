"""What people see of long work where there is no terminal, such as in a log."""

from __future__ import annotations

import pytest

from microtome import terminal
from microtome.terminal import RichProgress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now[0])
    return now


def test_a_long_stage_says_each_tenth_as_it_happens(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    said: list[str] = []
    with RichProgress() as progress:
        for _ in progress.track(range(32), "evaluate", 32):
            said += lines(capsys)
            clock[0] += 5
    assert said[:2] == ["evaluate: 0 of 32", "evaluate: 4 of 32, 140 s left"]
    assert len(said) == 1 + 9  # all of them before the end
    assert lines(capsys) == ["evaluate: 32 done in 160.0 s"]


def test_a_quick_stage_says_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress() as progress:
        assert list(progress.track(iter("abc"), "read", 3)) == ["a", "b", "c"]
    first, last = lines(capsys)
    assert first == "read: 0 of 3"
    assert last.startswith("read: 3 done in 0.")


def test_slow_steps_and_those_without_a_total_are_not_silent(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with RichProgress() as progress:
        for _ in progress.track(iter(range(4)), "scan"):
            clock[0] += 31
        for _ in progress.track(range(1000), "steps", 1000):
            clock[0] += 1
    said = lines(capsys)
    assert said[:6] == ["scan", "scan: 1", "scan: 2", "scan: 3", "scan: 4", "scan: 4 done in 124.0 s"]
    assert 30 < sum(line.startswith("steps") for line in said) < 45  # each hundred, and twice a minute


def test_what_is_said_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress() as progress:
        progress.say(
            "skip [bold] layers of a line that is longer than the eighty columns that a log has by default [/]"
        )
    assert lines(capsys) == [
        "skip [bold] layers of a line that is longer than the eighty columns that a log has by default [/]"
    ]


def test_what_grew_is_not_called_smaller() -> None:
    assert terminal._gain(4.0, "smaller", "larger") == "4.00× smaller"
    assert terminal._gain(0.25, "smaller", "larger") == "4.00× larger"


def test_in_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RichProgress() as progress:
        assert list(progress.track(range(3), "evaluate", 3)) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "evaluate: 0 of 3" not in shown


def test_times_and_operators_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "conv", "op": "conv", "executed": "int8", "kernel": "gemm", "latency_ms": 1.5},
        {"name": "norm", "op": "norm", "executed": "f32", "kernel": "ref", "latency_ms": None},
    ]
    terminal.bench_table({"runs": [{"name": "openvino bf16", "latency_ms": 2.25}], "layers": rows})
    out = capsys.readouterr().out
    assert "2.250 ms" in out
    assert "1.500" in out
    assert "norm" in out
