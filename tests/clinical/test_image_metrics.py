"""PSNR, SSIM and NRMSE: by hand, and against MONAI; references of one value; what a verdict rests on."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import PSNRMetric, SSIMMetric

from microtome.clinical.cases import CaseScores
from microtome.clinical.pixels import nrmse, of_one_value, psnr, same_values, score_images, ssim, summarise_images
from microtome.errors import GeometryError

FLOAT32 = 2e-5  # MONAI's windows and means are float32, ours float64


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    reference = random.normal(size=shape).cumsum(axis=0).cumsum(axis=-1)
    return reference + random.normal(size=shape), reference


def test_by_hand() -> None:
    predicted, reference = np.array([[0.0, 3.0], [4.0, 4.0]]), np.array([[0.0, 4.0], [4.0, 4.0]])
    assert psnr(predicted, reference) == pytest.approx(10 * math.log10(4**2 / 0.25))
    assert nrmse(predicted, reference) == pytest.approx(0.5 / math.sqrt(12))
    assert (psnr(reference, reference), ssim(reference, reference), nrmse(reference, reference)) == (100.0, 1.0, 0.0)


@pytest.mark.parametrize("shape", [(24, 31), (13, 14, 15)])
def test_against_monai(shape: tuple[int, ...]) -> None:
    predicted, reference = pair(shape)
    spread = float(reference.max() - reference.min())
    tensors = [torch.from_numpy(array).float()[None, None] for array in (predicted, reference)]
    theirs = SSIMMetric(spatial_dims=len(shape), data_range=spread)(*tensors).item()
    assert ssim(predicted, reference) == pytest.approx(theirs, abs=FLOAT32)
    assert psnr(predicted, reference) == pytest.approx(PSNRMetric(max_val=spread)(*tensors).item(), abs=1e-3)


def test_windows_of_ssim_shrink_to_what_fits() -> None:
    predicted, reference = pair((24, 6))
    assert -1 <= ssim(predicted, reference) < 1
    assert ssim(predicted[:, :1], reference[:, :1]) < 1


def test_a_reference_of_one_value_is_undefined_and_shapes_must_agree() -> None:
    flat = np.full((12, 12), 5.0)
    assert math.isnan(psnr(flat + 1, flat))
    assert math.isnan(ssim(flat + 1, flat))
    assert nrmse(flat + 1, flat) == pytest.approx(0.2)
    assert math.isnan(nrmse(flat, np.zeros((12, 12))))
    with pytest.raises(GeometryError, match=r"shape \(12, 12\), its reference \(12, 11\)"):
        psnr(flat, flat[:, 1:])


def scored(n: int = 12, loss: float = 0.0, *, parent_noise: float = 0.1) -> list[CaseScores]:
    random = np.random.default_rng(5)
    cases = []
    for i in range(n):
        reference = random.random((1, 16, 16))
        before = reference + parent_noise * random.normal(size=reference.shape)
        after = before + loss * random.normal(size=reference.shape)
        names = ("image",)
        before_scores, after_scores = score_images(before, reference, names), score_images(after, reference, names)
        trivial = of_one_value(reference, names)
        cases.append(
            CaseScores(f"c{i}", f"p{i}", before_scores, after_scores, same_values(before, after), trivial=trivial)
        )
    return cases


def test_a_verdict_on_images() -> None:
    same = summarise_images(scored(), resamples=100)
    assert same["verdict"]["non_inferior"] is True
    assert same["parent"]["metrics"]["psnr"]["value"] == pytest.approx(20, abs=0.5)
    worse = summarise_images(scored(loss=0.2), resamples=100)["verdict"]
    assert worse["non_inferior"] is False
    weak = summarise_images(scored(parent_noise=1.0), resamples=100)["verdict"]
    assert (weak["non_inferior"], weak["cause"]) == (None, "parent")
    assert "output_scale" in weak["reason"]
    nobody = [CaseScores(c.case, c.patient, {}, {}, 1.0) for c in scored()]
    assert summarise_images(nobody, resamples=20)["verdict"]["cause"] == "reference"
    assert summarise_images(scored(1), resamples=20)["verdict"]["non_inferior"] is None
