import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import Node

from microtome.core.formats import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    Codebook,
    Format,
    MidRise,
    Minifloat,
    PowerOfTwo,
    Ternary,
)
from microtome.errors import OutputError, ReadError
from microtome.graph import edit, pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.packed import (
    as_packed,
    load_packed,
    pack_weights,
    packed_bytes,
    save_packed,
    theoretical_bytes,
    unpacked,
)
from microtome.graph.quantizers import quantizers
from microtome.graph.watching.observe import Observed
from microtome.methods.encode import EncodeWeights
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import NETWORKS, captured, images, randomize, told

HEADER_SHARE = 0.03  # names and shapes of half a million weights; 2 % at one bit


def quantized(name: str, bits: int | None = 4, skip: frozenset[str] = frozenset()) -> Network:
    network = FoldBatchNorm().run(captured(name))
    return Quantize(weight_bits=bits, search_weights=False, skip=skip).run(network, told(images(network.shape)))


def middle() -> Network:
    """Return a chain of four convolutions with half a million weights."""
    channels = [3, 64, 128, 256, 64]
    layers = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(channels)]
    return dataclasses.replace(capture(randomize(nn.Sequential(*layers)), (3, 16, 16)), state=frozenset({"folded"}))


def computed_with(network: Network) -> dict[str, Tensor]:
    """Return the weights and biases as the graph computes with them."""
    seen: dict[str, Tensor] = {}

    def look(node: Node, value: Tensor) -> None:
        for source in (n for n in node.all_input_nodes if n.op == "get_attr"):
            seen[str(source.target)] = network.tensor(str(source.target))

    def look_behind(node: Node, value: Tensor) -> None:
        seen[str(node.all_input_nodes[0].target)] = value

    weights = [q.node for q in quantizers(network) if q.kind == "weight"]
    grids = {q.node for q in quantizers(network)}
    readers = [node for node in network.graph_module.graph.nodes if node.op == "call_function" and node not in grids]
    x = images(network.shape, 1)[0]
    Observed(network, readers, look)(x)
    Observed(network, weights, look_behind)(x)
    return seen


def check(network: Network, path) -> None:
    save_packed(network, path)
    loaded = load_packed(path)
    expected = computed_with(network)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    assert packed_bytes(network) == path.stat().st_size


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "nothing"])
@pytest.mark.parametrize("bits", [2, 3, 5, 8, 9, 16])
def test_the_weights_come_back_exactly(name: str, bits: int, tmp_path):
    check(quantized(name, bits), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["unet2d", "transformer", "shared2d"])
def test_a_float_network_comes_back_exactly(name: str, tmp_path):
    check(captured(name), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "number_format",
    [
        Affine(4, group=32),
        Affine(5, symmetric=False),
        PowerOfTwo(4),
        PowerOfTwo(5),
        AdditivePowerOfTwo(4),
        Codebook(3),
        Codebook(4, integer=True),
        Codebook(2, per_channel=True),
        MidRise(),
        Ternary(),
        Ternary(two_scales=True),
        Binary(),
        Minifloat("fp16"),
        Minifloat("e4m3fn", scaled=True),
    ],
    ids=repr,
)
def test_encoded_weights_come_back_exactly(number_format: Format, tmp_path):
    network = EncodeWeights(number_format).run(quantized("unet2d"), told())
    check(network, tmp_path / "weights.safetensors")
    header = pack_weights(network).header
    assert {entry["bits"] for entry in header["tensors"].values()} == {number_format.bits}
    assert len(header["tensors"]) == len(network.layers)


def test_layers_in_float_are_stored_in_float(tmp_path):
    network = quantized("unet2d", skip=frozenset({"up"}))
    check(network, tmp_path / "weights.safetensors")
    packed = pack_weights(network)
    assert packed.tensors["up.weight"].dtype == torch.float32
    assert "up.weight" not in packed.header["tensors"]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_file_is_as_small_as_the_bits_say(bits: int, tmp_path):
    network = middle()
    network = Quantize(weight_bits=max(bits, 2), search_weights=False).run(network, told(images(network.shape, 1)))
    if bits == 1:
        network = EncodeWeights(Binary()).run(network, told())
    save_packed(network, tmp_path / "weights.safetensors")
    expected = 0
    for layer in network.layers:
        weight = network.tensor(str(layer.weight.target))
        expected += weight.numel() * bits / 8 + 4 * weight.shape[0] + 4 * weight.shape[0]  # codes, scales, biases
    assert theoretical_bytes(network) == expected
    size = (tmp_path / "weights.safetensors").stat().st_size
    assert expected < size < (1 + HEADER_SHARE) * expected


def test_the_header_says_what_is_in_the_file(tmp_path):
    network = EncodeWeights(Codebook(3), skip=frozenset({"up"})).run(quantized("unet2d"), told())
    save_packed(network, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        header = json.loads(file.metadata()["microtome"])
        stored = set(file.keys())
    up, down = header["tensors"]["up.weight"], header["tensors"]["down.0.weight"]
    assert (up["shape"], up["bits"], up["axis"]) == ([32, 16, 2, 2], 4, 1)
    assert header["formats"][up["format"]] == {"type": "Affine", "bits": 4, "signed": True}
    assert (down["shape"], down["bits"], down["axis"]) == ([32, 16, 3, 3], 3, 0)
    assert header["formats"][down["format"]] == {"type": "Codebook", "bits": 3}
    assert {"up.weight", "up.weight@scale", "down.0.weight@codebook", "up.bias"} <= stored
    assert not {name for name in stored if name.endswith(("_scale", "_zero_point"))}


def test_a_codebook_that_is_shared_is_stored_once():
    network = quantized("unet2d")
    weights = [network.tensor(str(layer.weight.target)) for layer in network.layers]
    parameters = Codebook(4).fit_shared(weights)
    formats = {}
    for layer, weight in zip(network.layers, weights, strict=True):
        name = str(layer.weight.target)
        formats[name] = Codebook(4).encode(weight, 0, parameters).encoding
        network.graph_module.get_parameter(name).data.copy_(formats[name].encode(weight).decode())
        layer.node.args[1].replace_all_uses_with(layer.weight)
    edit.finish(network.graph_module)
    packed = pack_weights(dataclasses.replace(network, formats=formats))
    assert len([name for name in packed.tensors if "@" in name]) == 1
    assert len(packed.header["tensors"]) == len(weights)


def test_an_encoding_that_no_longer_fits_is_not_used(tmp_path):
    network = EncodeWeights(Ternary()).run(quantized("unet2d"), told()).copy()
    network.graph_module.get_parameter("up.weight").data.mul_(3)
    check(network, tmp_path / "weights.safetensors")
    assert pack_weights(network).header["tensors"]["up.weight"]["bits"] == 8


def test_one_weight_on_two_grids_stays_in_float():
    network = captured("shared2d")
    for bits, packed in ((4, True), (3, False)):
        settings = {"layer_bits": {"conv": (4, 8), "conv#2": (bits, 8)}}
        shared = Quantize(search_weights=False, **settings).run(network, told(images(network.shape)))
        assert {str(layer.weight.target) for layer in shared.layers} == {"enter.weight", "conv.weight"}
        assert ("conv.weight" in pack_weights(shared).header["tensors"]) == packed


def test_the_network_file_keeps_the_encodings(tmp_path):
    network = EncodeWeights(PowerOfTwo(4), layer_formats={"up": Minifloat("e5m2", scaled=True)}).run(
        quantized("unet2d"), told()
    )
    pt2.save(network, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    assert pack_weights(loaded).content() == pack_weights(network).content()
    assert loaded.fingerprint() == network.fingerprint()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "plain", "other", "short"])
def test_a_broken_file_is_named(damage: str, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_packed(quantized("shared2d"), path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "cut"):
        path.write_bytes(b"" if damage == "empty" else content[:-5])
    elif damage == "short":
        packed = pack_weights(quantized("shared2d"))
        tensors = {name: tensor[:-1].clone() if "@" not in name else tensor for name, tensor in packed.tensors.items()}
        save_file(tensors, path, {"microtome": json.dumps(packed.header)})
    else:
        save_file({"x": torch.zeros(1)}, path, None if damage == "plain" else {"microtome": "[1, 2]"})
    with pytest.raises(ReadError, match=r"weights\.safetensors"):
        load_packed(path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_packed(quantized("shared2d"), tmp_path / "nothing" / "weights.safetensors")


@pytest.mark.parametrize("bits", [3, 8, 12])
def test_codes_one_by_one_are_the_same_weights(bits: int, tmp_path):
    network = quantized("unet2d", bits)
    spread = pack_weights(network, spread=True)
    found = unpacked(spread.content(), tmp_path)
    for name, tensor in unpacked(pack_weights(network).content(), tmp_path).items():
        assert torch.equal(found[name], tensor)
    name, layer = next((str(layer.weight.target), layer) for layer in network.layers)
    assert spread.header["version"] == 2
    assert spread.tensors[name].shape == network.tensor(str(layer.weight.target)).shape
    assert spread.tensors[name].dtype == (torch.uint8 if bits <= 8 else torch.int32)


def test_a_version_that_is_not_known_is_refused(tmp_path):
    packed = pack_weights(quantized("shared2d"))
    later = dataclasses.replace(packed, header={**packed.header, "version": 3})
    with pytest.raises(ReadError, match="version 3"):
        unpacked(later.content(), tmp_path)


@pytest.mark.parametrize("name", ["unet2d", "shared2d", "transformer"])
def test_a_network_of_packed_weights_computes_the_same(name: str):
    network = quantized(name)
    before = network.fingerprint()
    packed = as_packed(network)
    x = images(network.shape, 1)[0]
    assert torch.equal(packed(x), network(x))
    assert network.fingerprint() == before
    weights = unpacked(pack_weights(network).content(), Path("x"))
    changed = 0
    for key, tensor in packed.constants().items():
        if key in weights:
            assert torch.equal(tensor, weights[key])
            changed += not torch.equal(tensor, network.tensor(key))
    assert changed > 1
    assert as_packed(packed).fingerprint() == packed.fingerprint()
