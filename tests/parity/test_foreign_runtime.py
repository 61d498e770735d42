"""A runtime of another package is found when it is named, and does what the built-in ones do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.errors import OptionError
from microtome.runtimes import runtime
from networks import captured, images


def test_it_is_found_by_its_dotted_path(tmp_path: Path) -> None:
    module, network = runtime("their_pkg.boxed"), captured("unet2d")
    session = module.open_session(module.export(network, tmp_path), threads=1, precision="f32")
    x = images(network.shape)[0]
    with torch.no_grad():
        assert np.array_equal(session.run(x.numpy()), network(x).numpy())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("boxed", "there is no target 'boxed'"),  # nothing is looked for
        ("their_pkg.nothing", "cannot be imported"),
        ("their_pkg.zoo", "is no target: it has no NAME, EXTRA, PRECISIONS"),
    ],
)
def test_what_is_none_is_refused(name: str, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        runtime(name)


def test_nothing_is_imported_unasked() -> None:
    for name in [name for name in sys.modules if name.startswith("their_pkg")]:
        del sys.modules[name]
    runtime("reference")
    assert not any(name.startswith("their_pkg") for name in sys.modules)
