import pytest
import torch
from torch import Tensor

from microtome.training import teachers
from microtome.training.loop import endless
from microtome.training.teachers import SoftLabels, Teacher, Views, digest, repeated
from networks import captured, images


def test_several_teachers_say_the_mean_of_their_probabilities():
    one, other, x = captured("unet2d"), captured("concat_up2d"), images((3, 16, 16))[0]
    said = Teacher([one, other])(x)
    mean = (one(x).softmax(1) + other(x).softmax(1)) / 2
    torch.testing.assert_close(said.softmax(1), mean.detach(), rtol=1e-4, atol=1e-5)
    assert not said.requires_grad
    torch.testing.assert_close(Teacher(one)(x), one(x).detach(), rtol=1e-4, atol=1e-4)


def test_answers_are_read_and_not_asked_for_again(tmp_path, monkeypatch):
    network, (x, y, _) = captured("unet2d"), images((3, 16, 16))
    first = Teacher(network, known=SoftLabels(tmp_path / "answers"))
    said = first(x)
    torch.testing.assert_close(said, network(x).detach(), rtol=1e-3, atol=1e-3)
    assert not torch.equal(said, network(x).detach())  # float16
    second = Teacher(network, known=SoftLabels(tmp_path / "answers"))
    monkeypatch.setattr(second, "_asked", lambda _: pytest.fail("asked again"))
    assert torch.equal(second(x.clone()), said)
    with pytest.raises(pytest.fail.Exception):
        second(y)
    second._known.clear()
    with pytest.raises(pytest.fail.Exception):
        second(x)


def test_a_full_disk_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "ROOM", 1 << 60)
    known = SoftLabels(tmp_path)
    values = torch.tensor([[1e9, 1 / 3]])
    torch.testing.assert_close(known.put("a", values), torch.tensor([[65504.0, 0.33325195]]))
    assert known.get("a") is None
    assert not list(tmp_path.iterdir())


def test_a_digest_tells_batches_apart():
    x = images((3, 16, 16))[0]
    assert digest(x) == digest(x.clone()) == digest(x.to(memory_format=torch.channels_last))
    moved = x.clone()
    moved[0, 0, 0, 0] += 1e-6
    assert digest(moved) != digest(x)
    assert digest({"a": x, "b": moved}) == digest({"b": moved, "a": x}) != digest({"a": moved, "b": x})
    assert digest(x.reshape(1, -1)) != digest(x)


class Drawn:
    """Two batches per epoch, each named by its epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        yield from ((self.epoch, place) for place in range(2))
        self.epoch += 1


def test_epochs_come_again():
    batches = endless(repeated(Drawn(), 2), 0)
    found = [next(batches) for _ in range(8)]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)] * 2
    later = endless(repeated(Drawn(), 2), 5)
    assert [next(later) for _ in range(3)] == [(0, 1), (1, 0), (1, 1)]


def test_batches_without_epochs_are_as_they_are():
    batches: list[Tensor] = images((3, 4, 4))
    assert repeated(batches, 2) is batches
    assert len(Views(Drawn(), 2)) == 2
