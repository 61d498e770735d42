"""What networks are for: one file per task, with everything that is the task's own. Importing them loads no torch."""

from __future__ import annotations

from microtome.errors import OptionError
from microtome.plugins import find
from microtome.tasks.base import Task

TASKS = {
    "segmentation": "microtome.tasks.segmentation:Segmentation",
    "classification": "microtome.tasks.classification:Classification",
    "multi-label": "microtome.tasks.multilabel:MultiLabel",
    "regression": "microtome.tasks.regression:Regression",
    "image-to-image": "microtome.tasks.image:ImageToImage",
    "detection": "microtome.tasks.detection:Detection",
}


def task(name: str) -> Task:
    """Return a task by its name, or another package's by where it is: `their_package.module:TheirTask`.

    Raises:
        OptionError: there is no such task.
    """
    found = find(name, TASKS, "task", form="their_pkg.module:TheirTask")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise OptionError(f"{name} is no task.", "A task is a class derived from `microtome.tasks.base.Task`.")
    return found()
