"""Weights as training leaves them: prefixes, foreign tensors, norms, wrappers, number types; files of other kinds."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import microtome.models
from microtome.errors import MicrotomeError, ReadError, WeightsError
from microtome.graph.capture import capture
from microtome.graph.quiet import quiet
from microtome.models import load_model
from microtome.models.weights import apply_state, load_state

SHAPE = (1, 8, 8)


def unet(conv: Any = nn.Conv2d) -> nn.Module:
    """A network with two modules of its own; different at each call."""
    layers = collections.OrderedDict(encoder=conv(1, 4, 3, padding=1), norm=nn.BatchNorm2d(4), head=conv(4, 2, 1))
    return nn.Sequential(layers)


@pytest.fixture
def trained() -> nn.Module:
    module = unet()
    module(torch.randn(2, *SHAPE))
    return module.eval()


def assert_loaded(path: Path, source: nn.Module, target: nn.Module | None = None) -> tuple[str, ...]:
    """Load a file into a new network, check that it computes what the source does, and return the notes."""
    loaded = load_model(target or unet(), weights=path, input_shape=SHAPE)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), source.eval()(x).float(), rtol=1e-3, atol=1e-3)
    return loaded.notes


def under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


# Prefixes and foreign tensors.

FOREIGN = {
    "a weight of the loss": {"criterion.pos_weight": torch.ones(2)},
    "a metric": {"val_dice.total": torch.tensor(3), "val_dice.best": torch.tensor(float("inf"))},
    "the weights of a perceptual loss": {"loss.vgg.0.weight": torch.ones(4, 4, 3, 3)},
    "a discriminator": {"discriminator.head.weight": torch.ones(1, 4, 1, 1)},
    "a lone tensor": {"class_weights": torch.ones(2)},
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("prefix", ["", "model.", "net.", "module.", "model.module.", "_orig_mod.", "my_unet.inner."])
def test_a_foreign_tensor_beside_the_network_is_left_out_with_a_note(tmp_path, trained, prefix, foreign) -> None:
    torch.save({"state_dict": under(prefix, trained) | FOREIGN[foreign]}, tmp_path / "last.ckpt")
    (note,) = [note for note in assert_loaded(tmp_path / "last.ckpt", trained) if "Left out" in note]
    assert all(name in note for name in FOREIGN[foreign])


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: f"model._orig_mod.{name}",
        lambda name: f"module.model.{name}",
        lambda name: f"model.{name.replace('encoder.', 'encoder._orig_mod.')}",
        lambda name: f"model.{name.replace('head.', 'head.module.')}",
        lambda name: f"_fsdp_wrapped_module.{name.replace('norm.', 'norm._checkpoint_wrapped_module.')}",
        lambda name: f"a.b.c.d.{name}",
    ],
)
def test_wrappers_anywhere_in_a_name(tmp_path, trained, spell) -> None:
    torch.save({spell(name): value for name, value in trained.state_dict().items()}, tmp_path / "w.pt")
    assert assert_loaded(tmp_path / "w.pt", trained) == ()


def test_a_prefix_that_only_the_network_has(tmp_path, trained) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    target = nn.Sequential(collections.OrderedDict(model=unet()))
    assert assert_loaded(tmp_path / "w.pt", trained, target) == ()


def test_of_two_copies_the_usual_one_is_taken_and_told(tmp_path, trained) -> None:
    torch.save(under("ema_model.", unet()) | under("model.", trained), tmp_path / "w.pt")
    notes = assert_loaded(tmp_path / "w.pt", trained)
    assert any("under model. and under ema_model." in note for note in notes)


def test_one_layer_more_in_the_file_is_another_network(tmp_path, trained) -> None:
    deeper = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    torch.save(deeper.state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"unknown to the network: 1\.weight \(2, 2, 3, 3\), 1\.bias"):
        apply_state(nn.Sequential(nn.Conv2d(1, 2, 3)), load_state(tmp_path / "w.pt"), tmp_path / "w.pt")
    torch.save({**trained.state_dict(), "encoder.second.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"unknown to the network: encoder\.second\.weight"):
        apply_state(unet(), load_state(tmp_path / "w.pt"), tmp_path / "w.pt")


# What load_state_dict accepts, and what it should.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = self.first
        self.third = nn.Conv2d(1, 1, 3, padding=1)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


class Renames(nn.Module):
    """Takes weights of an older version by a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Conv2d(1, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for part in ("weight", "bias"):
            if f"{prefix}old.{part}" in state:
                state[f"{prefix}new.{part}"] = state.pop(f"{prefix}old.{part}")
        super()._load_from_state_dict(state, prefix, *rest)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.new(x) * self.scale


def weight_normed(*args: Any, **more: Any) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(*args, **more))


def old_weight_normed(*args: Any, **more: Any) -> nn.Module:
    with quiet():
        return nn.utils.weight_norm(nn.Conv2d(*args, **more))


def spectral(*args: Any, **more: Any) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(*args, **more))


def old_spectral(*args: Any, **more: Any) -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(*args, **more))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (old_weight_normed, weight_normed),
        (weight_normed, old_weight_normed),
        (weight_normed, weight_normed),
        (old_spectral, spectral),
        (spectral, old_spectral),
        (spectral, spectral),
    ],
)
def test_norms_of_weights_in_both_forms(tmp_path, stored, wanted, prefix) -> None:
    source = unet(stored)
    source(torch.randn(2, *SHAPE))
    torch.save(under(prefix, source) | {"criterion.weight": torch.ones(2)}, tmp_path / "w.pt")
    notes = assert_loaded(tmp_path / "w.pt", source, unet(wanted))
    assert len(notes) == 1
    assert "criterion.weight" in notes[0]


@pytest.mark.parametrize("conv", [weight_normed, old_weight_normed, spectral, old_spectral])
def test_a_weight_that_a_norm_computes_is_a_constant_of_the_graph_and_the_module_stays(conv) -> None:
    module = unet(conv).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = module(x)
        network = capture(module, SHAPE)
        torch.testing.assert_close(network(x), expected)
        torch.testing.assert_close(module(x), expected)
    assert [layer.name for layer in network.layers] == ["encoder", "head"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.state_dict().keys() == before.keys()


def test_tied_weights_that_the_file_holds_once(tmp_path) -> None:
    source = Tied()
    once = {
        name: value
        for name, value in source.state_dict().items()
        if name in ("first.weight", "first.bias", "third.bias")
    }
    save_file(once, tmp_path / "w.safetensors")
    assert assert_loaded(tmp_path / "w.safetensors", source, Tied()) == ()
    del once["third.bias"]
    save_file(once, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing in the file: third\.bias"):
        load_model(Tied(), weights=tmp_path / "w.safetensors", input_shape=SHAPE)


def test_hooks_of_the_network_itself_and_single_numbers_with_an_axis(tmp_path) -> None:
    source = Renames()
    state = {"old.weight": source.new.weight, "old.bias": source.new.bias, "scale": torch.full((1,), 2.0)}
    torch.save({"model": state}, tmp_path / "w.pt")
    assert assert_loaded(tmp_path / "w.pt", source, Renames()) == ()


@pytest.mark.parametrize("change", ["counters missing", "counters of a norm without", "extra state"])
def test_what_evaluation_does_not_use(tmp_path, trained, change) -> None:
    state, target = dict(trained.state_dict()), unet()
    if change == "counters missing":
        del state["norm.num_batches_tracked"]
    elif change == "extra state":
        state["encoder._extra_state"] = {"version": 1}
    else:
        target.norm._buffers["num_batches_tracked"] = None
    torch.save(state, tmp_path / "w.pt")
    assert assert_loaded(tmp_path / "w.pt", trained, target) == ()


def test_integers_are_no_weights_and_the_module_stays(tmp_path, trained) -> None:
    state = {**trained.state_dict(), "encoder.weight": torch.ones(4, 1, 3, 3, dtype=torch.int8)}
    torch.save(state, tmp_path / "w.pt")
    target = unet()
    before = target.encoder.weight.clone()
    with pytest.raises(WeightsError, match=r"of another type: encoder\.weight file torch\.int8, network"):
        apply_state(target, load_state(tmp_path / "w.pt"), tmp_path / "w.pt")
    assert torch.equal(target.encoder.weight, before)


# Containers, and the command that is printed for pickles.

CODE = """
import torch
from torch import nn


class Net(nn.Sequential):
    pass


class Average:
    def __init__(self, module):
        self.module = module
        self.decay = 0.9


class Settings:
    pass


def make():
    return Net(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
"""
CONTAINERS = {
    "state_dict": lambda net, code: {"state_dict": net.state_dict(), "hyper_parameters": code.Settings()},
    "model_state_dict": lambda net, code: {"model_state_dict": net.state_dict(), "args": code.Settings()},
    "model": lambda net, code: {"epoch": 3, "model": net.state_dict(), "args": code.Settings()},
    "a module under model": lambda net, code: {"model": net, "optimizer": None},
    "net": lambda net, code: {"net": net.state_dict(), "args": code.Settings()},
    "network_weights": lambda net, code: {"network_weights": net.state_dict(), "init_args": code.Settings()},
    "ema": lambda net, code: {"ema": net.state_dict(), "args": code.Settings()},
    "an average of a module": lambda net, code: {"ema": code.Average(net), "updates": 3},
    "the whole module": lambda net, code: net,
    "the whole module in DataParallel": lambda net, code: nn.DataParallel(net),
    "a list": lambda net, code: [code.Settings(), net.state_dict(), {"lr": 0.1}],
    "a list of modules": lambda net, code: [net, code.Settings()],
    "a tuple": lambda net, code: (3, net.state_dict(), code.Settings()),
    "a name of its own": lambda net, code: {"unet": net.state_dict(), "settings": code.Settings()},
    "halves": lambda net, code: {
        **{"0": net[0].state_dict(), "1": net[1].state_dict()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "settings": code.Settings(),
    },
    "nested": lambda net, code: {"checkpoint": {"model": {"state_dict": net.state_dict()}}, "args": code.Settings()},
    "arrays": lambda net, code: {
        "state_dict": {k: v.numpy() for k, v in net.state_dict().items()},
        "a": code.Settings(),
    },
    "half precision": lambda net, code: {"model": net.half(), "args": code.Settings()},
}


@pytest.fixture
def code(tmp_path, monkeypatch) -> Any:
    """A module of the user's own, in a folder of its own."""
    (tmp_path / "user_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("user_code", None)
    yield __import__("user_code")
    sys.modules.pop("user_code", None)


def command(hint: str, old: Path, new: Path) -> str:
    """The command that a hint gives, for a file."""
    return re.search(r'python -c ".*?"', hint)[0].replace("OLD", str(old)).replace("NEW.pt", str(new))


def advised(hint: str, old: Path, new: Path) -> subprocess.CompletedProcess[str]:
    """Run that command as a program, where the user's code lies."""
    words = [sys.executable, *shlex.split(command(hint, old, new))[1:]]
    more = {"cwd": old.parent, "env": {**os.environ, "PYTHONPATH": str(Path(microtome.models.__file__).parents[2])}}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_command_that_is_printed_for_pickles_works(tmp_path, code, container) -> None:
    net = code.make()
    net(torch.randn(2, *SHAPE))
    torch.save(CONTAINERS[container](net, code), tmp_path / "old.pt")
    with pytest.raises(WeightsError, match="pickled Python objects") as caught:
        load_state(tmp_path / "old.pt")
    exec(shlex.split(command(caught.value.hint, tmp_path / "old.pt", tmp_path / "new.pt"))[2])
    assert_loaded(tmp_path / "new.pt", net.float(), code.make())


@pytest.mark.slow
def test_the_command_for_torchscript_and_for_pickles_of_python_itself(tmp_path, code) -> None:
    net = code.make().eval()
    with quiet():
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, *SHAPE)), tmp_path / "script.pt")
    (tmp_path / "python.pt").write_bytes(pickle.dumps({"state_dict": net.state_dict()}))
    torch.save({"model": net, "args": code.Settings()}, tmp_path / "module.pt")
    for name in ("script.pt", "python.pt", "module.pt"):
        with pytest.raises(WeightsError) as caught:
            load_state(tmp_path / name)
        run = advised(caught.value.hint, tmp_path / name, tmp_path / f"new_{name}")
        assert run.returncode == 0, run.stderr
        assert_loaded(tmp_path / f"new_{name}", net, code.make())


def test_the_command_says_what_is_missing(tmp_path, code) -> None:
    torch.save(code.make(), tmp_path / "old.pt")
    (tmp_path / "user_code.py").unlink()
    with pytest.raises(WeightsError) as caught:
        load_state(tmp_path / "old.pt")
    run = advised(caught.value.hint, tmp_path / "old.pt", tmp_path / "new.pt")
    assert "needs code that cannot be imported: No module named 'user_code'" in run.stderr


# Files of other kinds.


def zipped(names: list[str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"something")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"), io.BytesIO())
    return content.getvalue()


def numpy_archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, weight=np.ones(3))
    return content.getvalue()


def onnx_file() -> bytes:
    from onnx import helper

    graph = helper.make_graph([], "g", [], [])
    return helper.make_model(graph, producer_name="pytorch").SerializeToString()


OTHERS = {
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "ONNX": (onnx_file, "an ONNX file"),
    "tar": (tarred, "a tar archive"),
    "gzip": (lambda: gzip.compress(b"weights" * 99), "packed with gzip"),
    "npz": (numpy_archive, "NumPy archive"),
    "npy": (lambda: b"\x93NUMPY\x01\x00" + bytes(200), "NumPy array"),
    "zip": (lambda: zipped(["a.txt", "b.txt"]), "ZIP archive of 2 files"),
    "web page": (lambda: b"<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
    "index": (lambda: b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "several files"),
    "TFLite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(200), "TensorFlow Lite"),
    "OpenVINO": (lambda: b'<?xml version="1.0"?><net></net>', "XML"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00" + bytes(200), "GGUF"),
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"weights of the year 2020\n" * 9, "truncated or no PyTorch checkpoint"),
    "zeros": (lambda: bytes(999), "truncated or no PyTorch checkpoint"),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pth.tar", ""])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_told_by_its_content(tmp_path, kind, suffix) -> None:
    content, reason = OTHERS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content())
    with pytest.raises(ReadError) as caught:
        load_state(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_that_is_called_safetensors(tmp_path, kind) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(OTHERS[kind][0]())
    with pytest.raises(ReadError):
        load_state(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ""])
def test_safetensors_under_another_name(tmp_path, trained, suffix) -> None:
    save_file(trained.state_dict(), tmp_path / f"w{suffix}", metadata={"format": "pt"})
    assert assert_loaded(tmp_path / f"w{suffix}", trained) == ()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_is_called_safetensors(tmp_path, trained, legacy) -> None:
    path = tmp_path / "w.safetensors"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert assert_loaded(path, trained) == ()


def test_safetensors_under_another_name_that_are_cut_off(tmp_path, trained) -> None:
    save_file(trained.state_dict(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadError, match="truncated or no safetensors file"):
        load_state(tmp_path / "w.pth")


def test_an_exported_program_is_no_weights_file(tmp_path, trained) -> None:
    with quiet():
        torch.export.save(torch.export.export(trained, (torch.zeros(1, *SHAPE),)), tmp_path / "w.pt2")
    with pytest.raises(ReadError, match="exported program"):
        load_state(tmp_path / "w.pt2")
    with pytest.raises(ReadError, match="is a folder"):
        load_state(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_but_our_errors_comes_out_of_broken_files(tmp_path, trained, seed) -> None:
    rng = np.random.default_rng(seed)
    files = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
    contents = []
    for name, how in files.items():
        torch.save({"state_dict": trained.state_dict()}, tmp_path / name, **how)
        contents.append((tmp_path / name).read_bytes())
    save_file(trained.state_dict(), tmp_path / "safe")
    contents.append((tmp_path / "safe").read_bytes())
    refused = 0
    for content in contents:
        for _ in range(40):
            broken = bytearray(content)
            for place in rng.integers(0, len(broken), rng.integers(1, 9)):
                broken[place] = rng.integers(256)
            (tmp_path / "broken.pt").write_bytes(broken[: rng.integers(len(broken) // 2, len(broken) + 1)])
            try:
                apply_state(unet(), load_state(tmp_path / "broken.pt"), tmp_path / "broken.pt")
            except MicrotomeError:
                refused += 1
    assert refused > 10  # of 120: a changed digit of a weight is a weight


# Modules that are wrapped, and in other number types.

WRAPS = {
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DataParallel of torch.compile": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
    "torch.compile of DataParallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("with_weights", [False, True])
def test_a_wrapped_module_is_unwrapped_with_a_note(tmp_path, trained, wrap, with_weights) -> None:
    torch.save(under("module.", trained), tmp_path / "w.pt")
    wrapped = WRAPS[wrap](unet() if with_weights else trained)
    loaded = load_model(wrapped, weights=tmp_path / "w.pt" if with_weights else None, input_shape=SHAPE)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), trained(x), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in loaded.network.layers] == ["encoder", "head"]
    assert "is taken" in loaded.notes[0]
    assert loaded.title == "Sequential"


def test_wrapped_parts_and_a_module_that_compiles_itself(trained) -> None:
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = trained(x)
    trained.encoder = torch.compile(trained.encoder, backend="eager")
    trained.head = nn.DataParallel(trained.head)
    trained.compile(backend="eager")
    network = capture(trained, SHAPE)
    torch.testing.assert_close(network(x).detach(), expected, rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in network.layers] == ["encoder", "head"]
    assert isinstance(trained.head, nn.DataParallel)  # the caller's stays


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_distributed_data_parallel(tmp_path, trained) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with quiet():
            wrapped = nn.parallel.DistributedDataParallel(trained)
        network = capture(wrapped, SHAPE)
    finally:
        torch.distributed.destroy_process_group()
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(network(x), trained(x), rtol=1e-4, atol=1e-5)


DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_module_of_another_type_is_cast_with_a_note_and_stays(trained, dtype) -> None:
    module = trained.to(dtype)
    network = capture(module, SHAPE)
    assert {value.dtype for value in network.constants().values() if value.is_floating_point()} == {torch.float32}
    assert f"{str(dtype).removeprefix('torch.')} were cast to float32" in network.notes[0]
    assert module.encoder.weight.dtype == dtype
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = module(x.to(dtype)).float()
    torch.testing.assert_close(network(x).detach(), expected, rtol=0.05, atol=0.05)


def test_a_module_of_mixed_types(trained) -> None:
    expected = trained.state_dict()["head.weight"].clone()
    trained.encoder.half()
    trained.head.double()
    network = capture(trained, SHAPE)
    assert any("2 in float16 and 2 in float64" in note for note in network.notes)
    assert torch.equal(network.tensor("head.weight"), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_type_are_cast_with_a_note(tmp_path, trained, dtype, suffix) -> None:
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in trained.state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, tmp_path / f"w{suffix}")
    loaded = load_model(unet(), weights=tmp_path / f"w{suffix}", input_shape=SHAPE)
    assert torch.equal(loaded.network.tensor("head.weight"), state["head.weight"].float())
    assert any("were cast to float32" in note for note in loaded.notes)


def test_weights_in_float32_for_a_module_in_half_keep_their_digits(tmp_path, trained) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    loaded = load_model(unet().half(), weights=tmp_path / "w.pt", input_shape=SHAPE)
    assert torch.equal(loaded.network.tensor("head.weight"), trained.head.weight)


def test_torchscript_and_quantized_modules_say_what_they_are(trained) -> None:
    with quiet():
        script = torch.jit.trace(trained, torch.zeros(1, *SHAPE))
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(MicrotomeError, match="is TorchScript"):
        capture(script, SHAPE)
    with pytest.raises(MicrotomeError, match="is quantized already"):
        capture(quantized, SHAPE)
    with torch.device("meta"), pytest.raises(WeightsError, match=r"no values in encoder\.weight"):
        capture(unet(), SHAPE)


# How many weights there are.


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = torch.relu(stage(x))
            found.append(x)
        return found


class Decoder(nn.Module):
    """As in dynamic_network_architectures: holds the encoder, and a head of each resolution."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.transpconv = nn.ConvTranspose2d(16, 8, 2, 2)
        self.seg_layers = nn.ModuleList([nn.Conv2d(16, 2, 1), nn.Conv2d(8, 2, 1)])

    def forward(self, skips: list[Tensor]) -> Tensor:
        return self.seg_layers[-1](self.transpconv(skips[1]) + skips[0])


class PlainConvUNet(nn.Module):
    def __init__(self, encoder_first: bool) -> None:
        super().__init__()
        encoder = Encoder()
        if encoder_first:
            self.encoder = encoder
        self.decoder = Decoder(encoder)
        if not encoder_first:
            self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def used(module: nn.Module) -> int:
    """Numbers in the parameters that the output depends on, by their gradients."""
    module.zero_grad()
    module(torch.randn(1, *SHAPE)).sum().backward()
    return sum(p.numel() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "make",
    [lambda: PlainConvUNet(True), lambda: PlainConvUNet(False), Tied, unet],
    ids=["first", "last", "tied", "plain"],
)
def test_weights_of_shared_modules_count_once_and_unused_ones_not(tmp_path, make) -> None:
    from microtome.graph import pt2
    from microtome.methods.fold import FoldBatchNorm

    module = make()
    network = capture(module, SHAPE)
    assert network.parameters == used(module) > 0
    pt2.save(network, tmp_path / "n.pt2")
    assert pt2.load(tmp_path / "n.pt2").parameters == network.parameters
    assert network.copy().parameters == network.parameters
    if make is not unet:  # whose norm is folded away
        assert FoldBatchNorm().run(network).parameters == network.parameters


@pytest.mark.parametrize("encoder_first", [True, False])
def test_what_training_learns_for_a_shared_module_reaches_the_network(encoder_first) -> None:
    from microtome.graph.learning.trainable import Trainable

    network = capture(PlainConvUNet(encoder_first), SHAPE)
    trainable = Trainable(network, weight=lambda _: None, activation=lambda _: None)
    with torch.no_grad():
        for weight in trainable.weights():
            weight.add_(1.0)
    learned, before = trainable.freeze().constants(), network.constants()
    assert sum(value.numel() for value in learned.values()) == network.parameters
    assert all(torch.equal(value, before[name] + 1.0) for name, value in learned.items())
