"""The Python lines of docs/executorch.md run, and read the program as microtome does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.runtimes import executorch
from networks import captured, images

PAGE = Path(__file__).parents[2] / "docs" / "executorch.md"


@pytest.mark.skipif(
    not executorch.measurable(), reason="executorch is not installed: pip install 'microtome[executorch]'"
)
def test_the_lines_read_what_microtome_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = captured("unet2d")
    x = images(network.shape, seed=3)[0][:1]
    place = tmp_path / "package" / "targets" / "executorch"
    place.mkdir(parents=True)
    expected = executorch.open_session(executorch.export(network, place), threads=1).run(x.numpy())
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = code.replace("torch.zeros(1, 3, 256, 256)", "given_image")
    assert lines != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"given_image": x}
    exec(lines, names)
    assert torch.allclose(names["scores"], torch.from_numpy(expected), atol=1e-6)
    assert torch.equal(names["labels"], torch.from_numpy(expected).argmax(1))
