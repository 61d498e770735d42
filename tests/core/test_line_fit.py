import numpy as np
import torch

from microtome.core.line_fit import LineFit

# numpy and we sum in float64; the values are float32, whose rounding is 6e-8 of them.
ROUNDING = 1e-5


def values(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((3, 200), generator=generator) * torch.tensor([[1.0], [0.1], [5.0]]) + offset
    return x, x * torch.tensor([[2.0], [-1.0], [0.5]]) + 0.3 * torch.randn((3, 200), generator=generator)


def test_lines_are_those_of_numpy():
    x, y = values()
    fit = LineFit()
    fit.update(x[:, :50], y[:, :50])
    fit.update(x[:, 50:], y[:, 50:])
    slope, offset = fit.line()
    for c in range(3):
        (expected, constant), residual, *_ = np.polyfit(x[c].double(), y[c].double(), 1, full=True)
        assert abs(float(slope[c]) - expected) <= ROUNDING
        assert abs(float(offset[c]) - constant) <= ROUNDING
        assert abs(float(fit.error(slope, offset)[c]) * 200 - residual[0]) <= ROUNDING * residual[0]
    for found, expected in ((fit.mean, x.mean(1)), (fit.variance, x.var(1, correction=0))):
        assert torch.allclose(found.float(), expected, atol=ROUNDING)
    assert torch.allclose(fit.spread.float(), y.var(1, correction=0), atol=ROUNDING)


def test_no_other_line_has_a_smaller_error():
    x, y = values()
    fit = LineFit()
    fit.update(x, y)
    slope, offset = fit.line()
    least = fit.error(slope, offset)
    for more, further in ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)):
        assert bool((fit.error(slope + more, offset + further) > least).all())


def test_a_large_offset_does_not_cancel():
    x, y = values(offset=1000.0)
    fit = LineFit()
    for part in range(0, 200, 10):
        fit.update(x[:, part : part + 10], y[:, part : part + 10])
    expected = np.polyfit(x[0].double() - 1000, y[0].double(), 1)[0]
    assert abs(float(fit.line()[0][0]) - expected) <= ROUNDING


def test_what_does_not_vary_has_no_slope():
    fit = LineFit()
    fit.update(torch.full((1, 4), 7.0), torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    slope, offset = fit.line()
    assert (float(slope[0]), float(offset[0])) == (0.0, 3.0)
    assert float(fit.error(slope, offset)[0]) == 3.5  # (4 + 1 + 0 + 9) / 4
