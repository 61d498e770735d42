"""What a student imitates: one network or several, and what they said already."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.core.output_distillation import mean_teacher
from microtome.graph.learning.memory import channels_last
from microtome.graph.network import Batch, Network
from microtome.graph.quantizers import quantizers

ROOM = 1 << 30  # bytes of the disk that stay free


class Teacher:
    """Networks that answer, and do not learn: x → (N, K, *S), or a tuple of several outputs.

    The first output is that of the mean of the teachers' probabilities; further ones are the first teacher's.

    Attributes:
        networks: copies; in float they compute with channels last, as students do.
    """

    def __init__(
        self, networks: Network | Sequence[Network], *, sigmoid: bool = False, known: SoftLabels | None = None
    ) -> None:
        """Copy the networks.

        Args:
            networks: one, or several with the same inputs and as many outputs.
            sigmoid: channels are probabilities of their own.
            known: where answers are kept, of networks with one output.
        """
        given = [networks] if isinstance(networks, Network) else networks
        self.networks = [network.copy() for network in given]
        self._sigmoid, self._known = sigmoid, known
        for network in self.networks:
            if not list(quantizers(network)):
                channels_last(network.graph_module)
                network.graph_module.recompile()

    @torch.no_grad()
    def __call__(self, x: Batch) -> Tensor | tuple[Tensor, ...]:
        """Answer."""
        if self._known is None:
            return self._asked(x)
        key = digest(x)
        found = self._known.get(key)
        if found is not None:
            return found.to(self.networks[0].device)
        answer = self._asked(x)
        return self._known.put(key, answer) if isinstance(answer, Tensor) else answer

    def _asked(self, x: Batch) -> Tensor | tuple[Tensor, ...]:
        answers = [network.graph_module(*network.arguments(x)) for network in self.networks]
        if len(answers) == 1:
            return answers[0]  # type: ignore[no-any-return]
        several = isinstance(answers[0], tuple)
        mean = mean_teacher([answer[0] if several else answer for answer in answers], sigmoid=self._sigmoid)
        return (mean, *answers[0][1:]) if several else mean


class SoftLabels:
    """Answers on disk, float16, each under the digest of what was asked: they are right whatever is asked when.

    Where the disk has less than a gigabyte left, no more are kept.
    """

    def __init__(self, folder: Path) -> None:
        """Keep them in a folder, which is made; what lies there is known already."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Tensor | None:
        """Return the answer to a question, float32; None if it is not known."""
        path = self._path(key)
        return torch.from_numpy(np.load(path).astype(np.float32)) if path.exists() else None

    def put(self, key: str, answer: Tensor) -> Tensor:
        """Keep an answer (N, K, *S), and return it as it will be read; beyond ±65504 it is cut off."""
        values = answer.float().clamp(-65504, 65504).half()
        if shutil.disk_usage(self.folder).free >= ROOM + 2 * values.numel():
            scratch = self.folder / f"{key}.tmp"
            with scratch.open("wb") as file:
                np.save(file, values.cpu().numpy())
            scratch.replace(self._path(key))
        return values.float()

    def clear(self) -> None:
        """Forget all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"


class Views:
    """Batches whose epochs come again: epoch e is epoch e modulo `views`, so that few views of each image are drawn.

    Batches without epochs are passed on as they are.

    Attributes:
        epoch: the next one to be yielded; set it to go on from there.
    """

    def __init__(self, batches: Any, views: int) -> None:
        """Wrap batches that have a length and an attribute `epoch`."""
        self._batches, self._views, self.epoch = batches, views, 0

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield one epoch."""
        epoch = self.epoch
        self._batches.epoch = epoch % self._views
        yield from self._batches
        self.epoch = epoch + 1


def repeated(batches: Iterable[Any], views: int) -> Iterable[Any]:
    """Return batches whose epochs come again after so many; those that have no epochs as they are."""
    return Views(batches, views) if hasattr(batches, "epoch") and hasattr(batches, "__len__") else batches


def digest(x: Batch) -> str:
    """Return what stands for a batch: the same for the same values."""
    found = hashlib.blake2b(digest_size=16)
    named = {"": x} if isinstance(x, Tensor) else x
    for name in sorted(named):
        value = named[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
