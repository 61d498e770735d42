import pytest
import torch

from microtome.errors import OptionError
from microtome.graph.learning.taps import Tap, matched, places, stages, tap
from microtome.graph.learning.trainable import Trainable
from networks import build, captured, images


def test_places_have_the_shape_of_their_maps():
    found = places(captured("unet2d"))
    assert [(place.channels, place.size) for place in found.values()] == [
        (16, (16, 16)),
        (32, (8, 8)),
        (16, (16, 16)),
        (16, (16, 16)),
    ]
    assert [place.layer for place in stages(captured("unet2d"))] == ["enter.0", "down.0", "leave.0"]
    tokens = places(captured("transformer"))["qkv"]
    assert (tokens.channels, tokens.size) == (96, (16,))


def test_a_tap_keeps_what_is_behind_norm_and_activation():
    network, module, x = captured("unet2d").copy(), build("unet2d"), images((3, 16, 16))[0]
    before = network(x)
    kept = tap(network.graph_module, network.layers[0])
    network.graph_module.recompile()
    torch.testing.assert_close(network(x), before)
    torch.testing.assert_close(kept.taken(), module.enter(x), rtol=1e-4, atol=1e-5)
    assert kept.value is None


def test_taps_come_after_norms_in_training():
    student, module, x = Trainable(captured("unet2d"), norms=True), build("unet2d").train(), images((3, 16, 16))[0]
    copied = student.network.__class__(student.module, student.network.inputs, student.network.outputs)
    kept = tap(student.module, copied.layers[0])
    student.module.recompile()
    student.module.train()
    student(x)
    torch.testing.assert_close(kept.taken(), module.enter(x), rtol=1e-4, atol=1e-4)
    assert student.freeze().constants().keys() == captured("unet2d").constants().keys()


def test_a_tap_of_tokens_has_channels_behind_the_batch():
    network = captured("transformer").copy()
    layer = next(layer for layer in network.layers if layer.name == "qkv")
    kept = tap(network.graph_module, layer)
    network.graph_module.recompile()
    network(images((3, 16, 16))[0])
    assert kept.taken().shape == (2, 96, 16)


def test_what_is_written_to_afterwards_is_kept_as_it_was():
    x = torch.ones(2)
    kept = Tap(last=False, copied=True)
    kept(x).add_(1)
    assert kept.taken().tolist() == [1, 1]


def test_stages_of_the_same_size_belong_together():
    pairs = matched(captured("concat_up2d"), captured("unet2d"), {})
    assert [(a.size, b.size) for a, b in pairs] == [((8, 8), (8, 8)), ((16, 16), (16, 16))]
    assert [(a.layer, b.layer) for a, b in pairs] == [("deep", "down.0"), ("up", "leave.0")]


def test_layers_are_matched_by_name():
    pairs = matched(captured("concat_up2d"), captured("unet2d"), {"enter": "enter.0"})
    assert [(a.layer, b.layer) for a, b in pairs] == [("enter", "enter.0")]
    with pytest.raises(OptionError, match="the student has no inner layer 'entre'") as error:
        matched(captured("concat_up2d"), captured("unet2d"), {"entre": "enter.0"})
    assert "such as enter" in error.value.hint
    with pytest.raises(OptionError, match="the teacher has no inner layer 'leave'"):
        matched(captured("unet2d"), captured("concat_up2d"), {"enter.0": "leave"})  # its last layer


def test_networks_without_maps_of_the_same_size_do_not_match():
    with pytest.raises(OptionError, match="no feature maps of student and teacher have the same size"):
        matched(captured("shared2d"), captured("transformer"), {})
