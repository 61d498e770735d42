"""Keras in: channels last in the file, first in the network."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from microtome.errors import ModelError, OptionError, ReadError
from microtome.models import load_model

# Not imported: that would choose its backend.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")
MAKE = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras
from keras import layers as L
image = L.Input((16, 16, 1))
x = L.Conv2D(4, 3, padding="same", use_bias=False, name="first")(image)
x = skip = L.ReLU()(L.BatchNormalization()(x))
x = L.UpSampling2D()(L.Conv2D(4, 3, strides=2, padding="same", name="down")(x))
x = L.Conv2D(3, 1, activation="softmax", name="head")(L.Concatenate()([x, skip]))
model = keras.Model(image, x)
model.save(sys.argv[1])
model.save_weights(sys.argv[2])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("keras")
    files = [str(place / name) for name in ("unet.keras", "only.weights.h5")]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, *files], check=True, env=environment)
    return place


@pytest.mark.slow
def test_a_model_gives_what_keras_computes_with_channels_first(folder):
    loaded = load_model(folder / "unet.keras")
    network = loaded.network
    assert (network.shape, network.outputs[0].shape) == ((1, 16, 16), (3, 16, 16))
    assert any("Checked against Keras: outputs differ" in note for note in loaded.notes)
    assert any("channels last" in note for note in loaded.notes)
    assert [layer.name for layer in network.layers] == ["first", "down", "head"]
    operators = [str(n.target) for n in network.graph_module.graph.nodes if n.op == "call_function"]
    assert not any("permute" in name or "batch_norm" in name for name in operators)
    scores = network(torch.randn(2, 1, 16, 16))
    assert torch.allclose(scores.sum(1), torch.ones(2, 16, 16), atol=1e-5)


def test_what_is_wrong_is_said(folder, tmp_path):
    with pytest.raises(ModelError, match="holds weights but no network"):
        load_model(folder / "only.weights.h5")
    with pytest.raises(OptionError, match="own weights"):
        load_model(folder / "unet.keras", weights=folder / "unet.keras")
    with pytest.raises(ReadError, match="does not exist"):
        load_model(tmp_path / "none.keras")
    cut = tmp_path / "cut.keras"
    cut.write_bytes((folder / "unet.keras").read_bytes()[:500])
    with pytest.raises((ModelError, ReadError)):
        load_model(cut)
