import pytest
import torch

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.graph import edit, pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.types import QType
from networks import captured, images


def shared() -> Network:
    return captured("shared2d").copy()


def test_a_constant_gets_a_name_of_its_own():
    network = shared()
    node = edit.add_constant(network.graph_module, "conv.weight", torch.ones(2))
    assert node.target == "conv.weight_2"
    assert torch.equal(network.tensor("conv.weight_2"), torch.ones(2))
    assert next(iter(network.graph_module.graph.nodes)) is node


@pytest.mark.parametrize("name", ["new.deep.value", "odd#2.bias", "0_scale"])
def test_a_constant_may_have_any_dotted_name(name: str):
    network = shared()
    edit.add_constant(network.graph_module, name, torch.arange(3))
    assert torch.equal(network.tensor(name), torch.arange(3))


def test_own_constant_leaves_the_other_user_alone():
    network = shared()
    _, one, other = (layer.node for layer in network.layers)
    before = network.tensor("conv.weight").clone()
    edit.own_constant(network.graph_module, one, 1, before * 2)
    assert torch.equal(network.tensor(str(one.args[1].target)), before * 2)
    assert torch.equal(network.tensor(str(other.args[1].target)), before)


def test_own_constant_of_the_only_user_replaces_in_place():
    network = shared()
    node = network.layers[0].node
    edit.own_constant(network.graph_module, node, 1, torch.zeros(4, 1, 1, 1))
    assert node.args[1].target == "enter.weight"
    assert not network.tensor("enter.weight").any()


def test_a_weight_in_common_is_set_for_the_layers_that_are_named():
    network = shared()
    grid = qparams_from_range(torch.full((4,), -1.0), torch.full((4,), 1.0), QType(8, narrow=True, axis=0))
    _, one, other = network.layers
    before = network.tensor("conv.weight").clone()
    for layer in (one, other):
        edit.insert_quantizer(network.graph_module, layer.weight, [layer.node], grid, layer.name)
    edit.set_weight(network.graph_module, [one], before * 2)  # the other one reads it too
    assert torch.equal(network.tensor(str(one.weight.target)), before * 2)
    assert torch.equal(network.tensor(str(other.weight.target)), before)


@pytest.mark.parametrize("third", [False, True])
def test_a_weight_in_common_stays_in_common(third: bool):
    network = shared()
    grid = qparams_from_range(torch.full((4,), -1.0), torch.full((4,), 1.0), QType(8, narrow=True, axis=0))
    _, one, other = network.layers
    before = network.tensor("conv.weight").clone()
    for layer in (one, other):
        edit.insert_quantizer(network.graph_module, layer.weight, [layer.node], grid, layer.name)
    reader = None
    if third:  # somebody else reads the weight, and must not notice
        with network.graph_module.graph.inserting_before(one.node):
            reader = network.graph_module.graph.call_function(torch.abs, (one.weight,))
    edit.set_weight(network.graph_module, [one, other], before * 2)
    assert one.weight is other.weight
    assert torch.equal(network.tensor(str(one.weight.target)), before * 2)
    assert (one.weight.target == "conv.weight") is not third
    if reader is not None:
        assert torch.equal(network.tensor(str(reader.args[0].target)), before)


@pytest.mark.parametrize("axis", [None, 1])
def test_a_quantizer_does_what_the_arithmetic_says(axis: int | None):
    network = shared()
    qtype = QType(4, symmetric=axis is not None, axis=axis)
    size = () if axis is None else (4,)
    grid = qparams_from_range(torch.full(size, -1.0), torch.full(size, 2.0), qtype)
    value = network.layers[0].node
    edit.insert_quantizer(network.graph_module, value, list(value.users), grid, "here")
    edit.finish(network.graph_module)
    x = images(network.shape)[0]

    original = captured("shared2d").copy()
    layer = original.layers[0].node
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            if n is layer:
                result = fake_quantize(result, grid)
                seen["values"] = result
            return result

    expected = Watch(original.graph_module).run(x)
    # 4 bits: at most 16 values, and the quantizer's own arithmetic is torch's, which multiplies by 1/scale
    assert len(seen["values"].unique()) <= 16
    assert torch.allclose(network(x), expected, atol=1e-5)


def test_a_quantizer_stands_only_before_the_users_given():
    network = captured("residual3d").copy()
    entry = network.layers[0].node
    conv, add = list(entry.users)
    grid = qparams_from_range(torch.tensor(-1.0), torch.tensor(1.0), QType(8))
    quantizer = edit.insert_quantizer(network.graph_module, entry, [conv], grid, "here")
    assert set(quantizer.users) == {conv}
    assert set(entry.users) == {quantizer, add}


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_is_shifted_or_made(bias: bool):
    network = capture(torch.nn.Conv2d(2, 3, 1, bias=bias), (2, 5, 5))
    x, shift = torch.rand(1, 2, 5, 5), torch.tensor([1.0, -2.0, 0.5])
    expected = network(x) + shift[:, None, None]
    edit.shift_bias(network, network.layers[0], shift)
    edit.finish(network.graph_module)
    torch.testing.assert_close(network(x), expected)


def test_finish_drops_what_nobody_reads():
    network = shared()
    edit.add_constant(network.graph_module, "unused.value", torch.ones(2))
    edit.finish(network.graph_module)
    assert "unused.value" not in network.graph_module.state_dict()
    assert "unused.value" not in network.constants()


def test_finish_keeps_a_tied_tensor_under_the_name_that_is_read():
    network = captured("tied2d").copy()
    edit.finish(network.graph_module)
    x = images(network.shape)[0]
    assert torch.equal(network(x), captured("tied2d")(x))


def test_edits_survive_the_file(tmp_path):
    network = shared()
    one = network.layers[1].node
    grid = qparams_from_range(torch.full((4,), -1.0), torch.full((4,), 1.0), QType(8, narrow=True, axis=0))
    edit.insert_quantizer(network.graph_module, one.args[1], [one], grid, "conv#2")
    edit.own_constant(network.graph_module, one, 2, torch.ones(4))
    edit.finish(network.graph_module)
    pt2.save(network, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    x = images(network.shape)[0]
    assert torch.equal(loaded(x), network(x))
    assert sum(kind(node) == "quantizer" for node in loaded.graph_module.graph.nodes) == 1


def test_a_name_below_a_tensor_gets_underscores():
    network = captured("shared2d").copy()
    assert edit.unique_name(network.graph_module, "conv.weight.bias") == "conv_weight_bias"
