"""`f32` is f32, another precision is named, and what a target cannot run is told by operator, layer, and what can."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import microtome
from microtome.deployment.deploy import MOST_DB, _Contender, _Timing, deploy, sqnr
from microtome.deployment.placement import Placement
from microtome.deployment.timing import Candidate
from microtome.errors import MicrotomeError, TargetError
from microtome.graph.capture import capture
from microtome.runtimes import onnxruntime, openvino, runtime
from microtome.staging import Staging
from microtome.verbs.compress import _precision
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_request
from tiny import PICTURES, Spots, manifest_cohort, segmentation_cohort

pytestmark = pytest.mark.slow

SHAPE = (1, 16, 16)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times do not matter here."""
    monkeypatch.setattr("microtome.deployment.timing.MOST_ROUNDS", 1)


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine on which bf16 is always the faster; the precisions in which a session was opened."""
    opened: list[str] = []
    real = openvino.open_session

    def open_session(path: Path, *, threads: int = 0, precision: str = "f32"):
        opened.append(precision)
        return real(path, threads=threads, precision="f32")  # this machine may have no bf16

    def interleaved(candidates, x, **_):
        rows = [{"name": c.name, "runtime": c.runtime, "precision": c.precision, "bytes": c.bytes} for c in candidates]
        for row, candidate in zip(rows, candidates, strict=True):
            row["latency_ms"] = 1.0 if "bf16" in candidate.name else 10.0
            row["quartiles_ms"], row["rounds"] = [row["latency_ms"]] * 2, 1
            if candidate.compressed:
                row["compressed"] = True
        return rows

    monkeypatch.setattr(openvino, "open_session", open_session)
    monkeypatch.setattr("microtome.deployment.deploy.interleaved", interleaved)
    return opened


def compressed(folder: Path, **options) -> dict:
    chosen = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4, **options)
    return microtome.compress(Spots(), manifest_cohort(folder / "cohort", cases=16), folder / "package", options=chosen)


@pytest.mark.parametrize(("precision", "expected"), [("auto", "f32"), ("bf16", "bf16")])
def test_f32_is_f32_where_bf16_is_faster(tmp_path, fast_bf16, precision, expected) -> None:
    result = compressed(tmp_path, recipe="f32", precision=precision)
    assert result["session"]["precision"] == expected
    names = [run["name"] for run in result["runs"]]
    assert len(set(names)) == len(names)
    (ours,) = [run for run in result["runs"] if run.get("compressed")]
    assert (ours["name"], ours["precision"]) == (f"openvino {expected}, compressed", expected)
    assert any("runs in bf16, not in f32" in note for note in result["notes"]) == (expected == "bf16")


@pytest.mark.parametrize(
    ("asked", "placed", "ran", "expected"),
    [
        ("auto", None, "f32", "f32"),  # as the recipe, or chosen by auto
        ("auto", None, "int8", None),  # the faster
        ("auto", "bf16", "f32", "bf16"),  # measured to be faster than integers
        ("bf16", None, "f32", "bf16"),
        ("f32", "bf16", "int8", "f32"),
    ],
)
def test_who_decides_the_precision(asked, placed, ran, expected) -> None:
    request = SimpleNamespace(options=CompressOptions(precision=asked), runtime=openvino)
    placement = placed and Placement(frozenset(), frozenset(), placed, 1.0, in_float=True, tried=())
    assert _precision(request, placement, ran) == expected
    none = SimpleNamespace(options=CompressOptions(precision=asked), runtime=SimpleNamespace(PRECISIONS=("f16",)))
    assert _precision(none, None, "f32") == (None if asked == "auto" else asked)


# Networks that a target cannot run.


class Fourier(nn.Module):
    """A layer in the frequencies, and one beside it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.filter = Filter(form)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.filter(self.first(x)))


class Filter(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.weight = form, nn.Parameter(torch.rand(4, 16, 9))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "rfft2":
            return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=(16, 16))
        if self.form == "rfft":
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=16)
        if self.form == "fft2":  # OpenVINO runs this, and returns something else
            return torch.fft.fft2(x).real
        return torch.fft.rfft2(x, norm="ortho").abs()[..., :8].repeat_interleave(2, -1)


FORMS = {"rfft2": "fft_rfft2", "rfft": "fft_rfft", "fft2": "fft_fft2", "magnitude": "fft_rfft2"}


@pytest.mark.parametrize("form", FORMS)
def test_a_fourier_transform_is_told_with_layer_and_target_before_any_work(tmp_path, form) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=16)
    pipeline = PICTURES.__class__(**{**vars(PICTURES), "size": (16, 16)})
    for precision in ("auto", "f32", "bf16"):
        options = CompressOptions(pipeline=pipeline, precision=precision)
        with pytest.raises(TargetError, match=rf"OpenVINO computes {FORMS[form]} \(layer filter\)") as caught:
            read_request(Fourier(form), cohort, options)
        assert "--target onnxruntime" in caught.value.hint
    with pytest.raises(TargetError, match="layer filter"):
        openvino.export(capture(Fourier(form), SHAPE), tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_the_target_that_is_named_runs_it(tmp_path, form) -> None:
    network = capture(Fourier(form), SHAPE)
    x = torch.randn(1, *SHAPE)
    session = onnxruntime.open_session(onnxruntime.export(network, tmp_path), threads=1)
    with torch.no_grad():
        assert sqnr(network(x).numpy(), session.run(x.numpy())) > 90
    place = Staging(tmp_path / "out", {}).part("onnxruntime", "targets/onnxruntime")
    assert deploy(network, network, runtime("onnxruntime"), x.numpy(), place, title="f32").parity_db > 90


class Choosy:
    """A runtime that runs in one precision, or computes something else in it."""

    NAME, PRECISIONS = "choosy", ("f32", "bf16")

    def __init__(self, works: tuple[str, ...], wrong: tuple[str, ...] = ()) -> None:
        self.works, self.wrong = works, wrong

    def open_session(self, path: Path, *, threads: int, precision: str):
        if precision not in self.works:
            raise TargetError(f"choosy cannot run this in {precision}.", "Nothing helps.")
        factor = -1.0 if precision in self.wrong else 1.0

        class Session:
            def run(self, x):
                return factor * x

        return Session()


ONES = np.ones((1, 1, 8, 8), np.float32)


def taken(target: Choosy, *precisions: str, x: np.ndarray = ONES) -> list[str]:
    """Return the precisions of these in which a target runs a network that changes nothing."""
    timing = _Timing(target, x, 1, Candidate("eager", "pytorch", "f32", lambda x: x))
    runs = timing.interleaved([_Contender(p, Path(), p, p, 1, x, True) for p in precisions])
    return [run["name"] for run in runs if run.get("compressed")]


def test_the_other_precision_is_advised_only_if_it_was_tried() -> None:
    assert taken(Choosy(("bf16",)), "f32", "bf16") == ["bf16"]
    with pytest.raises(TargetError, match=r"cannot run this in f32\. In bf16 it runs: --precision bf16"):
        taken(Choosy(("bf16",)), "f32")
    with pytest.raises(TargetError, match=r"cannot run this in f32\. Nothing helps"):
        taken(Choosy(()), "f32")
    with pytest.raises(TargetError, match=r"cannot run this in f32\. Nothing helps"):
        taken(Choosy(("bf16",), wrong=("bf16",)), "f32")


def test_a_precision_in_which_something_else_is_computed_is_not_taken() -> None:
    x = np.ones((1, 1, 8, 8), np.float32)
    assert taken(Choosy(("f32", "bf16"), wrong=("bf16",)), "f32", "bf16") == ["f32"]
    with pytest.raises(TargetError, match=r"computes something else than the graph in bf16: -6\.02 dB"):
        taken(Choosy(("bf16",), wrong=("bf16",)), "bf16")
    assert sqnr(x, -x) > -MOST_DB
    few = x[..., 0, :3]  # of a classifier, all about zero perhaps
    assert taken(Choosy(("bf16",), wrong=("bf16",)), "bf16", x=few) == ["bf16"]


def test_an_operator_that_fails_while_it_runs_is_named(tmp_path) -> None:
    network = capture(nn.Conv2d(1, 2, 3), SHAPE)
    session = onnxruntime.open_session(onnxruntime.export(network, tmp_path), threads=1)
    with pytest.raises(MicrotomeError, match=r"ONNX Runtime cannot run .* on an input of shape \(1, 3, 16, 16\)"):
        session.run(np.zeros((1, 3, 16, 16), np.float32))
