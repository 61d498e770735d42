import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from microtome.errors import ReadError, WeightsError
from microtome.graph.quiet import quiet
from microtome.models.weights import apply_state, load_state


def network(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def assert_loaded(path, source, module):
    apply_state(module, load_state(path), path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.fixture
def trained():
    torch.manual_seed(1)
    module = network()
    module(torch.randn(2, 1, 8, 8))  # moves the running statistics
    return module


def test_safetensors(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors", trained, network())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_state_dict(tmp_path, trained, legacy):
    torch.save(trained.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert_loaded(tmp_path / "w.pth", trained, network())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "network_weights", "net"])
def test_a_checkpoint_with_other_things_in_it(tmp_path, trained, key):
    checkpoint = {
        key: trained.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 3,
        "best": np.float32(0.91),
        "dice": [np.float64(0.9)],
    }
    torch.save(checkpoint, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", trained, network())


@pytest.mark.parametrize("prefix", ["module.", "model.", "network.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, trained, prefix):
    torch.save({prefix + key: value for key, value in trained.state_dict().items()}, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", trained, network())


def test_a_prefix_of_the_network_itself_stays(tmp_path, trained):
    source, target = nn.ModuleDict({"model": trained}), nn.ModuleDict({"model": network()})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt", source, target)


def test_batch_counters_may_be_missing(tmp_path, trained):
    state = {key: value for key, value in trained.state_dict().items() if "num_batches" not in key}
    save_file(state, tmp_path / "w.safetensors")
    target = network()
    apply_state(target, load_state(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")
    assert all(torch.equal(target.state_dict()[key], value) for key, value in state.items())
    assert target[1].num_batches_tracked == 0  # as in a new network: `trained` has seen one batch
    assert trained[1].num_batches_tracked == 1


def test_what_does_not_fit_is_named_with_shapes(tmp_path, trained):
    state = trained.state_dict()
    state["head.weight"] = state.pop("2.weight")
    state["0.weight"] = torch.zeros(6, 1, 3, 3)
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        apply_state(target, state, tmp_path / "w.pt")
    assert "missing in the file: 2.weight (2, 4, 1, 1)" in caught.value.problem
    assert "unknown to the network: head.weight (2, 4, 1, 1)" in caught.value.problem
    assert "of another shape: 0.weight file (6, 1, 3, 3), network (4, 1, 3, 3)" in caught.value.problem
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_at_most_three_keys_of_a_kind_are_named(tmp_path, trained):
    with pytest.raises(WeightsError, match=r"missing in the file: 0\.0\.weight .* and 7 more\.") as caught:
        apply_state(nn.Sequential(network(), nn.Conv2d(2, 2, 1)), {}, tmp_path / "w.pt")
    assert caught.value.problem.count("(") == 3  # one shape for each key that is named


class Code:
    """Anything of the user's that a pickle may hold."""


@pytest.mark.parametrize("content", [network(), {"state_dict": network().state_dict(), "config": Code()}])
def test_a_pickle_with_code_is_refused_with_the_way_to_convert_it(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="pickled Python objects, which is code") as caught:
        load_state(tmp_path / "w.pt")
    assert "If you trust the file" in caught.value.hint
    assert "weights_only=False" in caught.value.hint


def test_a_torchscript_archive_is_refused_with_the_way_to_convert_it(tmp_path):
    with quiet():
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="is a TorchScript archive, which is code"):
        load_state(tmp_path / "w.pt")


def test_files_that_hold_no_weights(tmp_path):
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no state dict but dict with epoch, loss"):
        load_state(tmp_path / "w.pt")
    torch.save(torch.ones(3), tmp_path / "t.pt")
    with pytest.raises(WeightsError, match="holds no state dict but Tensor"):
        load_state(tmp_path / "t.pt")


def test_nan_is_refused_and_the_file_named(tmp_path, trained):
    state = {**trained.state_dict(), "2.bias": torch.tensor([0.0, float("nan")])}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt holds NaN or infinite weights in 2\.bias"):
        load_state(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.98])
def test_a_truncated_file_is_a_read_error(tmp_path, trained, suffix, part):
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(trained.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ReadError, match="is truncated or no"):
        load_state(path)


@pytest.mark.parametrize("content", [b"not a checkpoint at all, only text\n" * 9, bytes(range(256)) * 4])
def test_another_kind_of_file_is_a_read_error(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ReadError, match="is truncated or no PyTorch checkpoint"):
        load_state(tmp_path / "w.pt")


def test_a_missing_file_is_a_read_error(tmp_path):
    with pytest.raises(ReadError, match=r"weights file .*w\.pt does not exist"):
        load_state(tmp_path / "w.pt")
