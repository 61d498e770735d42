"""What is read before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from microtome.cli.options import options_of
from microtome.errors import OptionError
from microtome.graph import pt2
from microtome.medical.cohort import load_cohort
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_network
from networks_with_ports import prompted
from tiny import segmentation_cohort

COUNTED = """
from pathlib import Path
from torch import nn

def factory():
    with Path(__file__).with_suffix(".calls").open("a") as calls:
        calls.write("called")
    return nn.Conv2d(1, 2, 3, padding=1)
"""


def test_the_model_is_loaded_once_also_where_its_pipeline_is_guessed(tmp_path: Path) -> None:
    cohort = load_cohort(segmentation_cohort(tmp_path / "cohort", cases=12))
    (tmp_path / "net.py").write_text(COUNTED)
    loaded, pipeline = read_network(f"{tmp_path / 'net.py'}:factory", cohort, CompressOptions())
    assert (tmp_path / "net.calls").read_text() == "called"
    assert loaded.network.shape[0] == pipeline.channels == 1
    assert any("guessed from the cohort" in note for note in loaded.notes)


def test_a_network_that_takes_more_than_an_image_is_refused(tmp_path: Path) -> None:
    cohort = load_cohort(segmentation_cohort(tmp_path / "cohort", cases=12))
    pt2.save(prompted(), tmp_path / "prompted.pt2")
    with pytest.raises(OptionError, match=r"takes 2 inputs \(image, prompt\)"):
        read_network(tmp_path / "prompted.pt2", cohort, CompressOptions())


@pytest.mark.parametrize(
    ("given", "targets"), [(None, ("openvino",)), (["reference"], ("reference",)), (["a", "b"], ("a", "b"))]
)
def test_targets_of_the_command_line(given: list[str] | None, targets: tuple[str, ...]) -> None:
    assert options_of({"input_shape": None, "format_": None, "target": given}).targets == targets
