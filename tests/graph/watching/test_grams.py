import pytest
import torch
from torch import nn
from torch.nn import functional

from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.watching import grams as module
from microtome.graph.watching.grams import grams
from networks import captured, images

SUMS = 1e-4  # float32 sums in another order
SETTINGS = {"widest": 64, "positions": 1000, "centred": True, "seed": 0}


@pytest.mark.parametrize("centred", [True, False])
def test_second_moments_of_what_a_layer_sees(centred: bool):
    conv = nn.Conv2d(3, 4, 3, padding=1)
    network, batches = capture(conv, (3, 6, 6)), images((3, 6, 6))
    (gram,) = grams(network, network.layers, batches, **{**SETTINGS, "centred": centred})
    seen = functional.unfold(torch.cat(batches), 3, padding=1).movedim(1, 2).flatten(0, 1).double()
    expected = seen.T.cov(correction=0) if centred else seen.T @ seen / len(seen)
    assert torch.allclose(gram.matrices[0][0], expected, atol=SUMS)
    assert torch.allclose(gram.means[0][0].double(), seen.mean(0), atol=SUMS)
    assert (gram.name, gram.layers) == ("weight", network.layers)


def test_layers_that_hold_one_weight_come_together():
    network = captured("shared2d")
    found = list(grams(network, network.layers, images(network.shape), **SETTINGS))
    assert [[layer.name for layer in gram.layers] for gram in found] == [["enter"], ["conv", "conv#2"]]
    apart = [next(grams(network, [layer], images(network.shape), **SETTINGS)) for layer in network.layers[1:]]
    assert torch.allclose(found[1].matrices[0], sum(gram.matrices[0] for gram in apart), atol=SUMS)
    assert len(found[1].means) == 2


def test_what_does_not_fit_into_memory_waits_for_another_pass(monkeypatch: pytest.MonkeyPatch):
    network, passes = captured("unet2d"), []

    class Batches:
        def __iter__(self):
            passes.append(1)
            return iter(images(network.shape))

    whole = list(grams(network, network.layers, Batches(), **SETTINGS))
    assert len(passes) == 1
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    single = list(grams(network, network.layers, Batches(), **SETTINGS))
    assert len(passes) == 1 + len(network.layers)
    assert [gram.name for gram in whole] == [gram.name for gram in single]
    assert torch.allclose(whole[0].matrices[0], single[0].matrices[0], atol=SUMS)


def test_images_are_needed_and_finite():
    network = captured("unet2d")
    with pytest.raises(DataError, match="no calibration images"):
        next(grams(network, network.layers, [], **SETTINGS))
    with pytest.raises(DataError, match=r"makes the input of enter\.0 NaN"):
        next(grams(network, network.layers, [torch.full((1, 3, 16, 16), torch.nan)], **SETTINGS))
