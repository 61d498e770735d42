import pytest
import torch
from torch import nn

from microtome.errors import CaptureError, WeightsError
from microtome.graph.capture import CAPTURE_TOLERANCE, capture


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        if x.sum() > 0:  # the line that the error must name
            return self.conv(x)
        return x


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return {"main": self.first(x), "deep supervision": [self.second(x)]}


class TwoInputs(nn.Module):
    def forward(self, image, prompt):
        return image + prompt


class OptionalInput(nn.Module):
    def forward(self, image, prompt=None):
        return image if prompt is None else image + prompt


class NoTensor(nn.Module):
    def forward(self, x):
        return None


class LastBatchOnly(nn.Module):
    """Works for a batch of one only."""

    def forward(self, x):
        return x.reshape(1, 1, 8, 8) * 2.0


def small(dims):
    conv, norm, pool = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
    )
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.PReLU(), pool(2), conv(4, 2, 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_graph_computes_what_the_module_does_also_for_other_sizes(dims):
    module = small(dims)
    network = capture(module, (1, *(8,) * dims))
    assert network.shape == (1, *(8,) * dims)
    assert network.dynamic == (True, False, *(True,) * dims)
    assert network.spatial_dims == dims
    module.eval()
    x = torch.randn(3, 1, *range(12, 12 + 2 * dims, 2))
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x), rtol=CAPTURE_TOLERANCE, atol=1e-6)


def test_layers_are_named_as_in_the_module_and_counted():
    network = capture(small(2), (1, 8, 8))
    assert [(layer.name, layer.op) for layer in network.layers] == [("0", "conv"), ("4", "conv")]
    assert network.parameters == 4 * 9 + 4 + 2 * 4 + 1 + 2 * 4 + 2  # running statistics are no parameters


def test_what_is_there_for_training_only_is_left_out_and_a_note_says_so():
    module = TwoOutputs().eval()
    network = capture(module, (1, 8, 8))
    left = "deep supervision.0 (for training only)"
    assert network.notes == (f"The network has 2 outputs: the scores are taken from 'main'; left out: {left}.",)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x)["main"])
    assert [layer.name for layer in network.layers] == ["first"]


def test_data_dependent_control_flow_names_the_line_of_the_model(capsys):
    line = Branching.forward.__code__.co_firstlineno + 1
    with pytest.raises(CaptureError, match=rf"Branching at test_capture\.py:{line} \(if x\.sum\(\) > 0:") as caught:
        capture(Branching(), (1, 8, 8))
    assert "Rewrite that line" in caught.value.hint
    assert capsys.readouterr().err == ""  # torch prints the graph; users get the sentence


def test_two_inputs_are_refused_by_name():
    with pytest.raises(CaptureError, match=r"TwoInputs\.forward takes 2 inputs \(image, prompt\)"):
        capture(TwoInputs(), (1, 8, 8))


def test_an_optional_second_input_is_left_at_its_default():
    assert capture(OptionalInput(), (1, 8, 8)).notes == ()


def test_no_tensor_is_refused():
    with pytest.raises(CaptureError, match="NoTensor returns no tensor but NoneType"):
        capture(NoTensor(), (1, 8, 8))


def test_a_wrong_shape_names_the_line_and_the_option():
    with pytest.raises(CaptureError, match=r"cannot run on an input of shape \(1, 2, 8, 8\)") as caught:
        capture(small(2), (2, 8, 8))
    assert "--input-shape" in caught.value.hint


def test_a_fixed_batch_is_captured_as_fixed():
    assert capture(LastBatchOnly(), (1, 8, 8)).dynamic == (False, False, False, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    module = small(2)
    with torch.no_grad():
        module[4].bias[1] = value
    with pytest.raises(WeightsError, match=r"NaN or infinite weights in 4\.bias\."):
        capture(module, (1, 8, 8))


def test_the_module_stays_as_it_was_and_the_network_is_independent_of_it():
    module = small(2).train()
    module[1].eval()  # frozen, as in fine-tuning
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = capture(module, (1, 8, 8))
    assert [part.training for part in module] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        output = network(x)
        module[0].weight.add_(1.0)
        assert torch.equal(network(x), output)


def test_the_flags_are_restored_after_a_failure_too():
    module = Branching().train()
    with pytest.raises(CaptureError):
        capture(module, (1, 8, 8))
    assert module.training
    assert module.conv.training
