import json
import struct
import zipfile

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from microtome.entropy.cuts import arrays_in
from microtome.graph import pt2
from networks import captured

WEIGHT = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)


def pieces(name: str, content: bytes, **beside: bytes) -> list[bytes]:
    files = {name: content, **{f"model.{ending}": value for ending, value in beside.items()}}
    return [content[start:stop] for start, stop in arrays_in(name, files)]


def test_openvino():
    xml = b'<net><data element_type="f32" shape="4,300" offset="3" size="4800"/><data offset="4803" size="8"/></net>'
    content = b"abc" + WEIGHT.tobytes() + b"12345678"
    assert pieces("model.bin", content, xml=xml) == [WEIGHT.tobytes()]
    assert pieces("model.bin", content) == []


def test_safetensors():
    content = save({"a": torch.from_numpy(WEIGHT), "b": torch.arange(3), "c": torch.from_numpy(-WEIGHT)}, {"x": "y"})
    assert pieces("weights.safetensors", content) == [WEIGHT.tobytes(), (-WEIGHT).tobytes()]


def test_pt2(tmp_path):
    network = captured("unet2d")
    pt2.save(network, tmp_path / "network.pt2")
    found = pieces("network.pt2", (tmp_path / "network.pt2").read_bytes())
    large = [t.numpy().tobytes() for t in network.constants().values() if t.nbytes >= 512]
    assert large
    for content in large:
        assert content in found


def test_onnx():
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(-WEIGHT))
    node = helper.make_node("Add", ["w", "c"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, WEIGHT.shape)
    initial = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.zeros(2), "small")]
    model = helper.make_model(helper.make_graph([constant, node], "g", [], [output], initial))
    assert sorted(pieces("model.onnx", model.SerializeToString())) == sorted([WEIGHT.tobytes(), (-WEIGHT).tobytes()])
    assert onnx.load_from_string(model.SerializeToString()) == model


@pytest.mark.parametrize("ending", ["onnx", "pt2", "safetensors", "bin", "xml", "json"])
@given(content=st.binary(max_size=200))
def test_what_is_not_understood_is_one_piece(ending: str, content: bytes):
    assert pieces(f"model.{ending}", content, xml=content if ending == "bin" else b"") == []


def test_spans_that_overlap_or_end_behind_the_file():
    header = {"a": {"data_offsets": [0, 600]}, "b": {"data_offsets": [300, 1000]}, "c": {"data_offsets": [1000, 9999]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(range(250)) * 5
    assert pieces("x.safetensors", content) == [content[8 + len(text) :][:600]]


def test_a_truncated_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("data/weight", WEIGHT.tobytes())
    content = (tmp_path / "a.pt2").read_bytes()
    assert pieces("a.pt2", content) == [WEIGHT.tobytes()]
    assert pieces("a.pt2", content[:-9]) == []
