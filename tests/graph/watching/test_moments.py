import pytest
import torch
from torch import nn
from torch.nn import functional

from microtome.graph.capture import capture
from microtome.graph.watching.moments import Moments
from networks import images

SUMS = 1e-4  # float32 sums in another order; the entries are of size 1


@pytest.mark.parametrize("widest", [100, 20, 5])
def test_mean_and_covariance_of_unfolded_images(widest: int):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    layer = capture(conv, (3, 6, 6)).layers[0]
    batches = [x + 3 * i for i, x in enumerate(images((3, 6, 6)))]  # batches with other means
    moments = Moments(layer, widest)
    generator = torch.Generator().manual_seed(0)
    for x in batches:
        moments.update(x, conv(x).detach(), 1000, generator)
    seen = functional.unfold(torch.cat(batches), 3, padding=1).movedim(1, 2).flatten(0, 1).double()
    assert moments.count == len(seen) == 6 * 36
    assert [p.stop - p.start for p in moments.parts] == {100: [27], 20: [18, 9], 5: [9, 9, 9]}[widest]
    assert moments.bytes == 4 * sum((p.stop - p.start) ** 2 for p in moments.parts)
    assert torch.allclose(moments.mean()[0].double(), seen.mean(0), atol=SUMS)
    for position, part in enumerate(moments.parts):
        centred, raw = (moments.covariance(position, centred=c)[0] for c in (True, False))
        assert torch.allclose(centred, seen[:, part].T.cov(correction=0), atol=SUMS)
        assert torch.allclose(raw, seen[:, part].T @ seen[:, part] / len(seen), atol=SUMS)


def test_positions_are_drawn_where_there_are_more():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    moments = Moments(capture(conv, (3, 6, 6)).layers[0], 100)
    x = images((3, 6, 6))[0]
    for _ in range(2):
        moments.update(x, conv(x).detach(), 10, torch.Generator().manual_seed(0))
    assert moments.count == 20
