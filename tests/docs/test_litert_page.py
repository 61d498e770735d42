"""The Python lines of docs/litert.md run, and read the file as microtome does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import litert
from networks import captured, images

PAGE = Path(__file__).parents[2] / "docs" / "litert.md"


@pytest.mark.parametrize("integers", [True, False])
def test_the_lines_read_what_microtome_wrote(integers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = captured("unet2d")
    if integers:
        context = Context(images(network.shape), capabilities=litert.capabilities())
        network = Quantize().run(FoldBatchNorm().run(network), context)
    x = images(network.shape, seed=3)[0].numpy()[:1]
    path = litert.export(network, tmp_path)
    place = tmp_path / "package" / "targets" / "litert"
    place.mkdir(parents=True)
    shutil.move(path, place)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = code.replace('np.zeros(given["shape"], np.float32)', "given_image.copy()")
    assert lines != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"given_image": np.moveaxis(x, 1, -1)}
    exec(lines, names)
    expected = litert.open_session(place / path.name, threads=2).run(x)
    assert np.allclose(np.moveaxis(names["scores"], -1, 1), expected, atol=1e-6)
    assert np.array_equal(names["labels"], expected.argmax(1))
