import torch

from core.decomposition.kernels import EXACT, random
from microtome.core.decomposition.factor import Factor, composed, parameters


def test_a_chain_by_hand():
    # 2·x(t−1) + 3·x(t), then the sum of both channels times 5
    first = Factor("first", torch.tensor([[[2.0, 3.0]], [[1.0, 0.0]]]), (0,))
    last = Factor("last", torch.tensor([[[5.0], [5.0]]]))
    assert composed([first, last]).tolist() == [[[15.0, 15.0]]]
    assert parameters([first, last]) == 6


def test_kernels_along_different_axes_multiply():
    enter, tall, wide, leave = (
        random(4, 3, 1, 1),
        random(4, 1, 3, 1, seed=1),
        random(4, 1, 1, 2, seed=2),
        random(5, 4, 1, 1),
    )
    chain = [
        Factor("first", enter),
        Factor("axis1", tall, (0,), depthwise=True),
        Factor("axis2", wide, (1,), depthwise=True),
        Factor("last", leave),
    ]
    expected = torch.einsum("or,ra,rb,ri->oiab", leave[..., 0, 0], tall[:, 0, :, 0], wide[:, 0, 0], enter[..., 0, 0])
    assert torch.allclose(composed(chain), expected, atol=EXACT)
    assert [(f.inputs, f.outputs) for f in chain] == [(3, 4), (4, 4), (4, 4), (4, 5)]


def test_dense_links_along_axes_multiply_as_matrices():
    tall, wide = random(4, 3, 3, 1, 1), random(5, 4, 1, 2, 3, seed=1)
    expected = torch.einsum("orbc,ria->oiabc", wide[:, :, 0], tall[..., 0, 0])
    assert torch.allclose(composed([Factor("first", tall, (0,)), Factor("last", wide, (1, 2))]), expected, atol=EXACT)
