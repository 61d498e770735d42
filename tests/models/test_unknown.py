"""Files that are no model are named for what they are."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from microtome.errors import MissingExtraError, ReadError
from microtome.models import load_model


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")


WRITERS = {
    "state.pt": (lambda p: torch.save(nn.Conv2d(1, 1, 1).state_dict(), p), "holds weights but no network", "--weights"),
    "checkpoint.bin": (
        lambda p: torch.save({"model": nn.Conv2d(1, 1, 1).state_dict()}, p),
        "holds weights",
        "--weights",
    ),
    "whole.pth": (lambda p: torch.save(nn.Conv2d(1, 1, 1), p), "whole module, pickled", "state_dict"),
    "w.safetensors": (lambda p: save_file({"a": torch.zeros(2)}, p), r"no network \(safetensors\)", "--weights"),
    "ov.xml": (lambda p: p.write_text('<?xml version="1.0"?>\n<net name="m" version="11">'), "OpenVINO", "ONNX"),
    "engine.bin": (lambda p: p.write_bytes(b"ftrt" + bytes(40)), "TensorRT", "ONNX"),
    "m.engine": (lambda p: p.write_bytes(b"\x01" * 40), "TensorRT", "ONNX"),
    "m.mlmodel": (lambda p: p.write_bytes(b"\x01" * 40), "Core ML", "ONNX"),
    "graph.pb": (lambda p: p.write_bytes(b"\x0a" * 40), "frozen TensorFlow graph", "tf2onnx"),
    "page.bin": (lambda p: p.write_bytes(b"<!DOCTYPE html><html>"), "web page", "Download"),
    "lfs.bin": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
    "array.npy": (lambda p: np.save(p, np.zeros(3)), "NumPy array", "images"),
    "m.bin": (lambda p: archive(p, "a/model.onnx", "readme"), "ZIP archive with a/model.onnx", "Unpack"),
    "tfjs.json": (lambda p: p.write_text(json.dumps({"modelTopology": {}})), "TensorFlow.js", "tf2onnx"),
    "empty.pt": (lambda p: p.write_bytes(b""), "is empty", "again"),
    "odd.bin": (lambda p: p.write_bytes(b"\x07nothing at all"), "no model that microtome reads", "Give"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_another_kind(tmp_path, name):
    write, what, way = WRITERS[name]
    write(tmp_path / name)
    with pytest.raises(ReadError, match=what) as caught:
        load_model(tmp_path / name)
    assert way in caught.value.hint


def test_a_folder_of_another_kind(tmp_path):
    (tmp_path / "unet.onnx").write_bytes(b"x")
    with pytest.raises(ReadError, match=r"holds unet\.onnx"):
        load_model(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match="SavedModel"):
        load_model(saved)
