import json
from pathlib import Path

import pytest
import torch

from microtome.errors import ReadError
from microtome.graph import pt2
from microtome.graph.coded import NETWORK, PLACES, WEIGHTS, apart, together
from microtome.graph.network import Network
from microtome.graph.packed import as_packed
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, told

HERE = Path("model.coded")


@pytest.fixture(scope="module")
def network() -> Network:
    folded = FoldBatchNorm().run(captured("unet2d"))
    return as_packed(Quantize(weight_bits=4, search_weights=False).run(folded, told(images(folded.shape))))


@pytest.fixture(scope="module")
def content(network: Network, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("network") / NETWORK
    pt2.save(network, path)
    return path.read_bytes()


def test_the_file_comes_back_byte_for_byte(network: Network, content: bytes):
    files = apart(network, content)
    assert together(files, HERE) == content
    loaded = pt2.load(HERE, content=together(files, HERE))
    assert loaded.fingerprint() == network.fingerprint()
    x = images(network.shape, 1)[0]
    assert torch.equal(loaded(x), network(x))


def test_no_weight_is_there_twice(network: Network, content: bytes):
    files = apart(network, content)
    assert len(files[NETWORK]) == len(content)
    large = [layer for layer in network.layers if layer.weight.meta["val"].numel() >= 128]
    assert len(json.loads(files[PLACES])) >= len(large) > 2
    for layer in large:
        weight = network.tensor(str(layer.weight.target)).numpy().tobytes()
        assert weight in content
        assert weight not in files[NETWORK]


@pytest.mark.parametrize(
    "change",
    [
        {PLACES: b"[[0,"},
        {PLACES: b"[[0, 1]]"},
        {PLACES: b"3"},
        {WEIGHTS: b"short"},
        {PLACES: b'[[1000000000, "down.0.weight"]]'},
        {PLACES: b'[[0, "down.0.weight"]]'},
    ],
)
def test_what_does_not_fit_is_refused(network: Network, content: bytes, change: dict[str, bytes]):
    with pytest.raises(ReadError, match=r"model\.coded"):
        together(apart(network, content) | change, HERE)


@pytest.mark.parametrize("name", [NETWORK, WEIGHTS, PLACES])
def test_what_is_missing_is_named(network: Network, content: bytes, name: str):
    files = {key: value for key, value in apart(network, content).items() if key != name}
    with pytest.raises(ReadError, match=name):
        together(files, HERE)
