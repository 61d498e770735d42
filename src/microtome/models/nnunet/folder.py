"""What lies where in a results folder of nnU-Net: checkpoints, folds, splits, post-processing."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import OptionError, ReadError
from microtome.models.base import Part
from microtome.models.nnunet.plans import AGAIN, read_object

if TYPE_CHECKING:
    from microtome.medical.cleanup import Cleanup

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
SPLITS = "splits_final.json"
PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's environment variable
CLEANUP = "postprocessing.pkl"
ALL = "all"  # a fold that was trained on every case
LARGEST = "remove_all_but_largest_component_from_segmentation"


@dataclass(frozen=True)
class Folder:
    """A results folder of one trainer, plans and configuration, and which of its checkpoints are meant.

    Attributes:
        path: the folder, with `plans.json`, `dataset.json` and a folder for each fold.
        folds: names of the folds, such as `0` or `all`.
        checkpoints: the file of each.
        notes: what had to be chosen.
    """

    path: Path
    folds: tuple[str, ...]
    checkpoints: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def configuration(self) -> str:
        """The configuration, by the folder's name; the checkpoint has the last word."""
        return self.path.name.split("__")[-1]


def is_results(path: Path) -> bool:
    """Whether a path is a results folder, a fold or a checkpoint in one, or a folder of several."""
    if path.is_file():
        return path.suffix == ".pth" and path.parent.name.startswith("fold_") and _is_root(path.parent.parent)
    if not path.is_dir():
        return False
    return _is_root(path) or (path.name.startswith("fold_") and _is_root(path.parent)) or bool(_roots(path))


def find_folder(path: Path, part: Part) -> Folder:
    """Find the checkpoints that a path means.

    Args:
        path: a results folder, a fold, a checkpoint, or a data set's folder with several results folders.
        part: which of them.

    Raises:
        OptionError: there is no such fold or configuration, or several could be meant.
        ReadError: there is no checkpoint.
    """
    fold, configuration = part.fold, part.configuration
    if path.is_file():
        _only(path, fold, configuration)
        return Folder(path.parent.parent, (_name(path.parent),), (path,))
    if path.name.startswith("fold_") and not _is_root(path):
        _only(path, fold, configuration)
        root, wanted = path.parent, [_name(path)]
    else:
        root, wanted = _root(path, configuration), _wanted(fold)
    found = {_name(place): place for place in sorted(root.glob("fold_*")) if place.is_dir()}
    held = {name: file for name, place in found.items() if (file := _checkpoint(place)) is not None}
    names = wanted or [name for name in held if name != ALL] or list(held)
    missing = [name for name in names if name not in held]
    if missing or not names:
        there = f"It has {', '.join(f'fold {name}' for name in held)}." if held else AGAIN
        which = f"of fold {missing[0]}" if missing else "of any fold"
        error = OptionError if held else ReadError
        raise error(f"The nnU-Net folder {root} has no checkpoint {which}.", there)
    notes = [
        f"Fold {name} has no {CHECKPOINTS[0]}: {held[name].name} was taken."
        for name in names
        if held[name].name != CHECKPOINTS[0]
    ]
    if len(names) > 1:
        notes.append(
            f"The network is the mean of {len(names)} folds ({', '.join(names)}), as nnU-Net predicts with them, and "
            f"takes {len(names)} times as long as one: --fold chooses one."
        )
    return Folder(root, tuple(names), tuple(held[name] for name in names), tuple(notes))


def trained_names(folder: Folder) -> tuple[tuple[str, ...], Path] | None:
    """Return the names of the cases that the folds were trained on, and the file that says it; None if none does.

    `splits_final.json` lies in the results folder or above it, or in nnU-Net's folder of preprocessed data.

    Raises:
        ReadError: it is broken, or has no such fold.
    """
    dataset = folder.path.parent.name
    places = [folder.path, folder.path.parent]
    preprocessed = os.environ.get(PREPROCESSED)
    places += [Path(preprocessed) / dataset] if preprocessed else []
    places += [folder.path.parent.parent.parent / "nnUNet_preprocessed" / dataset]
    file = next((place / SPLITS for place in places if (place / SPLITS).is_file()), None)
    if file is None:
        return None
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
        chosen = range(len(splits)) if ALL in folder.folds else [int(fold) for fold in folder.folds]
        parts = ("train", "val") if ALL in folder.folds else ("train",)
        names = [str(name) for fold in chosen for part in parts for name in splits[fold][part]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ReadError(f"{file} says nothing of fold {', '.join(folder.folds)} ({error!r}).", AGAIN) from error
    return tuple(dict.fromkeys(names)), file


def cleanup_of(folder: Folder, labels: Mapping[str, Sequence[int]]) -> tuple[tuple[Cleanup, ...], Path | None]:
    """Return the post-processing that nnU-Net found best for these folds, and its file; none where there is none.

    The file is a pickle; of what it names nothing is imported or run.

    Raises:
        ReadError: it is broken, or asks for a step that is not known.
    """
    together = folder.path / f"crossval_results_folds_{'_'.join(folder.folds)}"
    file = next((place / CLEANUP for place in (folder.path, together) if (place / CLEANUP).is_file()), None)
    if file is None:
        return (), None
    try:
        with file.open("rb") as stream:
            steps, words = _Names(stream).load()
        pairs = [(str(getattr(step, "name", step)), word) for step, word in zip(steps, words, strict=True)]
    except Exception as error:  # a broken pickle raises anything
        raise ReadError(f"{file} cannot be read ({error}).", AGAIN) from error
    return tuple(_step(name, word, labels, file) for name, word in pairs), file


@dataclass
class _Name:
    """A name that a pickle would have imported."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> _Name:
        """Stand for what it would have made."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Take no state but the name of what a `partial` is of."""
        if isinstance(state, tuple) and state and isinstance(state[0], _Name):
            self.name = state[0].name


class _Names(pickle.Unpickler):
    """Reads plain values, and of everything else only the name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a name instead of what it stands for."""
        return _Name(name)


def _step(name: str, words: Mapping[str, Any], labels: Mapping[str, Sequence[int]], file: Path) -> Cleanup:
    from microtome.medical.cleanup import Cleanup

    wanted = words.get("labels_or_regions")
    entries = wanted if isinstance(wanted, list) else [wanted]
    numbers: set[Any] = set()
    for entry in entries:
        numbers |= set(entry if isinstance(entry, list | tuple) else (entry,))
    known = {n for several in labels.values() for n in several} - {0}
    if name != LARGEST or not numbers or not numbers <= known or words.get("background_label", 0) != 0:
        raise ReadError(f"{file} asks for a step that is not known: {name}.", "Move the file away, to go without it.")
    return Cleanup("keep_largest", tuple(sorted(numbers)), together=True)


def _is_root(path: Path) -> bool:
    return (path / "plans.json").is_file() and ((path / "dataset.json").is_file() or any(path.glob("fold_*")))


def _roots(path: Path) -> list[Path]:
    """Results folders in a data set's folder: their names are trainer, plans and configuration."""
    return [place for place in sorted(path.glob("*__*__*")) if place.is_dir() and _is_root(place)]


def _root(path: Path, configuration: str | None) -> Path:
    if _is_root(path):
        if configuration not in (None, path.name.split("__")[-1]):
            raise OptionError(f"{path} is no results folder of {configuration}.", "Leave --configuration out.")
        return path
    found = _roots(path)
    chosen = [place for place in found if configuration in (None, place.name.split("__")[-1])]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(place.name for place in found)
    what = "no" if not chosen else f"{len(chosen)}"
    of = f" of {configuration}" if configuration else ""
    raise OptionError(f"{path} holds {what} results folders{of}: {names}.", "Give one of them, or --configuration.")


def _only(path: Path, fold: str | None, configuration: str | None) -> None:
    if fold is not None or configuration is not None:
        raise OptionError(f"{path} is one fold already.", "Leave --fold and --configuration out.")


def _wanted(fold: str | None) -> list[str]:
    return [] if fold is None else [name.strip().removeprefix("fold_") for name in fold.split(",") if name.strip()]


def _name(place: Path) -> str:
    return place.name.removeprefix("fold_")


def _checkpoint(place: Path) -> Path | None:
    return next((place / name for name in CHECKPOINTS if (place / name).is_file()), None)


def read_folder(folder: Folder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `plans.json` and `dataset.json`.

    Raises:
        ReadError: missing or broken.
    """
    return read_object(folder.path / "plans.json"), read_object(folder.path / "dataset.json")
