"""From a pickle that holds code to plain tensors: runs that code, so that only a user may call for it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from microtome.errors import ReadError, WeightsError
from microtome.graph.quiet import first_line, quiet
from microtome.models.checkpoints import tensors_of


def convert(old: str | Path, new: str | Path) -> None:
    """Write the state dict of whatever a file holds (a module, containers, lists) to a new file, which holds no code.

    Raises:
        ReadError: the file is missing or broken, or its code cannot be imported.
        WeightsError: there are no tensors in it.
    """
    state = tensors_of(_unpickled(Path(old)))
    if state is None:
        raise WeightsError(f"{old} holds no tensors.", "Save the weights with torch.save(model.state_dict(), FILE).")
    torch.save({name: tensor.cpu().clone() for name, tensor in state.items()}, Path(new))


def _unpickled(path: Path) -> Any:
    """Unpickle a file that torch wrote, or Python itself; its code runs."""
    try:
        with quiet():
            try:
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=False)
            except (RuntimeError, pickle.UnpicklingError):  # not torch's own format
                with path.open("rb") as file:
                    return pickle.load(file)
    except (ImportError, AttributeError) as error:
        raise ReadError(
            f"{path} needs code that cannot be imported: {first_line(error)}.",
            "Run the command in the folder of the code that saved it, or with that folder in PYTHONPATH.",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise ReadError(f"{path} cannot be unpickled: {first_line(error)}.", "Copy the file again.") from error
