"""What networks are for: one file per task, with everything that is the task's own. Importing them loads no torch."""

from __future__ import annotations

import importlib

from microtome.errors import OptionError
from microtome.tasks.base import Task

TASKS = {
    "segmentation": "microtome.tasks.segmentation:Segmentation",
    "classification": "microtome.tasks.classification:Classification",
}


def task(name: str) -> Task:
    """Return a task by its name, or another package's by where it is: `their_package.module:TheirTask`.

    Raises:
        OptionError: there is no such task.
    """
    place, _, kind = TASKS.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(place), kind) if kind else None
    except (ImportError, AttributeError) as error:
        raise OptionError(f"The task {name!r} cannot be loaded ({error}).", "Name it as module:class.") from error
    if found is None or not issubclass(found, Task):
        raise OptionError(f"There is no task {name!r}.", f"Choose one of {', '.join(TASKS)}.")
    return found()  # type: ignore[no-any-return]
