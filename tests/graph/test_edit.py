import pytest
import torch

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.graph import edit, pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind
from microtome.types import QType
from networks import captured, images

SEED = torch.Generator()


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


def low_rank(name: str = "head", rank: int = 4) -> tuple[Network, Network]:
    """Return a network whose linear layer has a weight of low rank, and the same with two layers in its place."""
    network = captured("dense2d").copy()
    (layer,) = (one for one in network.layers if one.name == name)
    down, up = torch.randn(rank, 48, generator=SEED.manual_seed(0)), torch.randn(4, rank, generator=SEED)
    bias = network.tensor(f"{name}.bias")
    edit.set_constant(network.graph_module, f"{name}.weight", up @ down)
    other = network.copy()
    (layer,) = (one for one in other.layers if one.name == name)
    chain = [edit.Link("down", aten.linear.default, down), edit.Link("up", aten.linear.default, up, bias)]
    edit.replace_layer(other.graph_module, layer, chain)
    edit.finish(other.graph_module)
    return network, other


def test_a_linear_layer_of_low_rank_is_two(tmp_path):
    network, other = low_rank()
    x = images(network.shape)[0]
    torch.testing.assert_close(other(x), network(x))
    assert [layer.name for layer in other.layers][-2:] == ["head.down", "head.up"]
    assert {"head.down.weight", "head.up.weight", "head.up.bias"} <= other.constants().keys()
    assert not {"head.weight", "head.bias"} & other.constants().keys()
    down, up = (layer.node for layer in other.layers[-2:])
    assert tuple(down.meta["val"].shape)[1:] == (4,)
    assert up.meta["val"] is network.layers[-1].node.meta["val"] or up.meta["val"].shape == (
        network.layers[-1].node.meta["val"].shape
    )
    pt2.save(other, tmp_path / "network.pt2")
    assert torch.equal(pt2.load(tmp_path / "network.pt2")(x), other(x))


def test_a_convolution_is_factorized_into_three():
    # Kim et al., ICLR 2016: a Tucker-2 factorization, here of a weight that was made from its factors
    network = captured("dense2d").copy()
    (layer,) = (one for one in network.layers if one.name == "convs.1")
    first, core, last = (torch.randn(*shape, generator=SEED) for shape in ((5, 32), (6, 5, 3, 3), (16, 6)))
    weight = torch.einsum("ap,pqxy,qb->abxy", last, core, first)
    edit.set_constant(network.graph_module, "convs.1.weight", weight)
    other = network.copy()
    (layer,) = (one for one in other.layers if one.name == "convs.1")
    plain, same = ([1, 1], [0, 0]), ([1, 1], [1, 1])
    chain = [
        edit.Link("first", aten.conv2d.default, first[..., None, None], settings=plain),
        edit.Link("core", aten.conv2d.default, core, settings=same),
        edit.Link("last", aten.conv2d.default, last[..., None, None], network.tensor("convs.1.bias"), plain),
    ]
    edit.replace_layer(other.graph_module, layer, chain)
    edit.finish(other.graph_module)
    x = images(network.shape)[0]
    torch.testing.assert_close(other(x), network(x), rtol=1e-4, atol=1e-3)  # sums in another order
    names = [one.name for one in other.layers]
    assert names == ["enter", "convs.0", "convs.1.first", "convs.1.core", "convs.1.last", "head"]
    by_name = {one.name: one.node for one in other.layers}
    assert tuple(by_name["convs.1.first"].meta["val"].shape)[1:] == (5, 8, 8)
    assert tuple(by_name["convs.1.core"].meta["val"].shape)[1:] == (6, 8, 8)


def test_a_weight_used_twice_is_replaced_once_and_names_stay_unique():
    network = shared()
    one, other = network.layers[1:]
    unit = torch.eye(4)[..., None, None]
    for layer in (one, other):
        weight, bias = network.tensor(str(layer.weight.target)), network.tensor("conv.bias")
        chain = [
            edit.Link("a", aten.conv2d.default, weight, bias, ([1, 1], [1, 1])),
            edit.Link("b", aten.conv2d.default, unit, settings=([1, 1], [0, 0])),
        ]
        edit.replace_layer(network.graph_module, layer, chain)
    edit.finish(network.graph_module)
    x = images(network.shape)[0]
    torch.testing.assert_close(network(x), captured("shared2d")(x))
    assert len(network.layers) == 5
    assert len({str(layer.weight.target) for layer in network.layers}) == 5


def test_a_constant_behind_a_tensor_gets_a_flat_name():
    network = shared()
    edit.add_constant(network.graph_module, "conv.weight.first.weight", torch.ones(2))
    assert torch.equal(network.tensor("conv_weight_first_weight"), torch.ones(2))


def test_what_is_known_of_a_layers_output_is_known_of_the_last_link_only():
    network = captured("dense2d").copy()
    layer = network.layers[-1]
    layer.node.meta["known"] = "of the output"
    down, up = torch.randn(2, 48, generator=SEED), torch.randn(4, 2, generator=SEED)
    chain = [edit.Link("down", aten.linear.default, down), edit.Link("up", aten.linear.default, up)]
    last = edit.replace_layer(network.graph_module, layer, chain)
    assert last.meta["known"] == "of the output"
    assert "known" not in last.args[0].meta
