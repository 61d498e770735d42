"""`demo`: `compress` on phantoms and the shipped network."""

from __future__ import annotations

import tempfile
from pathlib import Path

from microtome.demo.network import demo_network, pipeline
from microtome.demo.phantom import write_cohort
from microtome.progress import Progress, Silent
from microtome.results import Result
from microtome.verbs.compress import compress
from microtome.verbs.options import CompressOptions


def demo(
    out: str | Path = "microtome-demo",
    *,
    target: str = "openvino",
    cases: int = 160,
    threads: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Make phantoms, compress the small U-Net that finds their lesions, and write the package.

    Args:
        out: folder to make.
        target: runtime.
        cases: phantom slices, two per made-up patient.
        threads: 0 is all cores.
        progress: told of stages.

    Returns:
        The content of `result.json`.

    Raises:
        MicrotomeError: the folder cannot be made, or the target is not installed.
    """
    progress = progress or Silent()
    with tempfile.TemporaryDirectory() as folder:
        progress.say(f"make {cases} phantom brain slices")
        manifest = write_cohort(Path(folder), cases=cases)
        options = CompressOptions(
            target=target, pipeline=pipeline(), threads=threads, title="Demo: lesions in phantom brain slices"
        )
        return compress(demo_network(), manifest, out, options=options, progress=progress)
