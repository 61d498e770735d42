from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import microtome
from microtome.deployment import memory
from microtome.graph.capture import capture
from microtome.verbs.options import CompressOptions
from tiny import PICTURES, Spots, segmentation_cohort

MIB = 1 << 20


def two_convolutions(side: int = 64):
    return capture(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)), (1, side, side))


def test_the_most_that_is_alive_is_counted() -> None:
    network = two_convolutions()
    # at the rectifier its input and its output of 8 channels are alive, and 80 + 36 weights
    assert memory.inference_bytes(network, 64 * 64) == 4 * (2 * 8 * 64 * 64 + 80 + 36)


def test_a_larger_input_needs_more() -> None:
    network = two_convolutions()
    weights = 4 * 116
    small, large = (memory.inference_bytes(network, side * side) - weights for side in (64, 256))
    assert large == 16 * small


def test_a_skip_connection_stays_alive() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.exit = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.enter(x)
            return x + self.exit(x.sigmoid())

    network = capture(Skip(), (1, 32, 32))
    assert memory.inference_bytes(network, 32 * 32) == 4 * (3 * 8 * 32 * 32 + 16 + 72)


def test_a_container_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text(f"{100 * MIB}\n")
    used.write_text(f"{60 * MIB}\n")
    monkeypatch.setattr(memory, "LIMITS", (str(limit),))
    monkeypatch.setattr(memory, "USED", (str(used),))
    assert memory.free_bytes() == 40 * MIB
    limit.write_text("max\n")
    assert memory.free_bytes() > 40 * MIB


def test_what_does_not_fit_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    network = two_convolutions()
    assert memory.shortage(network, (1, 64, 64)) is None
    monkeypatch.setattr(memory, "free_bytes", lambda: MIB)
    said = memory.shortage(network, (1, 256, 256))
    assert said is not None
    assert "1×256×256 needs about 0.0 GiB" in said
    assert "'patch'" in said


@pytest.mark.slow
def test_what_does_not_fit_together_is_timed_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from microtome.runtimes import openvino

    alive, most = [], []
    original = openvino.open_session

    class Counted:
        def __init__(self, session) -> None:
            self._session = session
            alive.append(id(self))
            most.append(len(alive))

        def __getattr__(self, name):
            return getattr(self._session, name)

        def __del__(self) -> None:
            alive.remove(id(self))

    monkeypatch.setattr(openvino, "open_session", lambda *args, **more: Counted(original(*args, **more)))
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4)
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    together = microtome.compress(Spots(), cohort, tmp_path / "together", options=options)
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr("microtome.deployment.deploy.fits", lambda *_: False)
    in_turn = microtome.compress(Spots(), cohort, tmp_path / "turn", options=options)
    assert max(most) == 1
    assert {run["name"].partition(",")[0] for run in in_turn["runs"]} == {
        run["name"].partition(",")[0] for run in together["runs"]
    }
    assert in_turn["difference"] == together["difference"]
