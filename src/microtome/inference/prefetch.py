"""Reading one image ahead and writing one behind, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from microtome.inference.jobs import Job
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import Prepared, prepare
from microtome.medical.read import read_image, with_further
from microtome.types import Image


@dataclass
class Pending:
    """One image on its way: what the next stage needs, and the seconds of those behind it."""

    job: Job
    number: int
    grid: Image | None = None  # the image without its voxels
    prepared: Prepared | None = None
    notes: tuple[str, ...] = ()
    error: BaseException | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Prefetcher:
    """Reads and prepares images in a thread of its own, one ahead."""

    def __init__(self, jobs: Sequence[Job], pipeline: Pipeline) -> None:
        """Begin."""
        self._jobs, self._pipeline = jobs, pipeline
        self._room = threading.Semaphore(1)
        self._ready: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self) -> Pending:
        """Return the next image, or what was wrong with it."""
        case = self._ready.get()
        self._room.release()
        return case

    def stop(self) -> None:
        """Read no further image."""
        self._stopped = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        for number, job in enumerate(self._jobs, start=1):
            self._room.acquire()
            if self._stopped:
                return
            self._ready.put(self._read(Pending(job, number)))

    def _read(self, case: Pending) -> Pending:
        job, begin = case.job, time.perf_counter()
        try:
            image = with_further(read_image(job.files, job.index), job.inputs)
            case.seconds["read"] = time.perf_counter() - begin
            case.notes = image.notes
            case.prepared = prepare(image, self._pipeline)
            case.seconds["prepare"] = time.perf_counter() - begin - case.seconds["read"]
            case.grid = replace(image, array=image.array[:, :0].copy(), inputs={})  # lets go of the voxels
        except BaseException as error:  # it is raised where the case is taken
            case.error = error
        return case


class BackgroundWriter:
    """Writes in a thread of its own, one behind.

    Attributes:
        error: what went wrong; nothing is written after it.
    """

    def __init__(self) -> None:
        """Begin."""
        self.error: BaseException | None = None
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def give(self, write: Callable[[], None]) -> None:
        """Have something written, as soon as what was given before is being written."""
        self.check()
        self._waiting.put(write)

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Write what is waiting, and no more."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (write := self._waiting.get()) is not None:
            if self.error is None:
                try:
                    write()
                except BaseException as error:  # it is raised in the thread that gives and checks
                    self.error = error
