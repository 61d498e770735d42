"""`evaluate --parent`: which network the difference is from, and what else must be said of two networks that differ."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import microtome
from microtome.deployment.deploy import Deployed
from microtome.models import load_model
from microtome.terminal import print_result
from microtome.verbs.options import CompressOptions
from microtome.verbs.result import _parity
from sharing import Once
from tiny import PICTURES, Spots, segmentation_cohort

pytestmark = pytest.mark.slow

OPTIONS = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4, target="reference")
FACTORY = """
import torch, tiny

def own():
    return tiny.Spots()

def other():
    network = tiny.Spots()
    with torch.no_grad():
        network.head.bias += torch.tensor([0.0, 0.3])
    return network
"""


@pytest.fixture(scope="module")
def made(once: Once) -> Path:
    """A cohort, a package, and a file with its parent and with another network."""

    def make(folder: Path) -> None:
        segmentation_cohort(folder / "cohort")
        microtome.compress(Spots(), folder / "cohort", folder / "package", options=OPTIONS)
        (folder / "networks.py").write_text(FACTORY)

    return once("parents", make)


def evaluated(made: Path, out: Path, parent: str | None) -> dict[str, Any]:
    given = None if parent is None else f"{made}/networks.py:{parent}"
    microtome.evaluate(made / "package", made / "cohort", out, parent=given)
    return cast(dict[str, Any], json.loads((out / "result.json").read_text()))


def test_the_own_parent_passes_and_its_hash_is_kept(made: Path, tmp_path: Path) -> None:
    result = evaluated(made, tmp_path / "out", "own")
    package = json.loads((made / "package" / "result.json").read_text())
    assert result["parent"]["sha256"] == package["parent"]["sha256"]
    assert not any("is not the one" in line for line in result["warnings"])
    assert result["verdict"]["non_inferior"] is True


def test_another_parent_is_told_loudly(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated(made, tmp_path / "out", "other")
    expected = load_model(f"{made}/networks.py:other", pipeline=PICTURES).network.fingerprint()
    package = json.loads((made / "package" / "result.json").read_text())
    assert result["parent"]["sha256"] == expected != package["parent"]["sha256"]
    said = next(line for line in result["warnings"] if "is not the one that the package was made from" in line)
    assert expected[:12] in said
    assert package["parent"]["sha256"][:12] in said
    assert "is not the one that the package was made from" in (tmp_path / "out" / "report.html").read_text()
    print_result(result, tmp_path / "out")
    assert "is not the one that the package was made from" in capsys.readouterr().out


def test_without_a_parent_nothing_is_said_of_one(made: Path, tmp_path: Path) -> None:
    result = evaluated(made, tmp_path / "out", None)
    assert "sha256" not in result["parent"]
    assert result["verdict"]["cause"] == "no parent"
    assert result["warnings"] == []
    assert "There was no parent to compare with." in (tmp_path / "out" / "report.html").read_text()


def test_several_margins_reach_the_warnings(made: Path, tmp_path: Path) -> None:
    """The other network finds larger spots: a gain or a loss of more than 0.015."""
    result = evaluated(made, tmp_path / "out", "other")
    change = result["difference"]["dice"]["value"]
    assert abs(change) > 0.015
    assert any(f"do not behave alike: Dice by {change:+.4f}"[:-1] in line for line in result["warnings"])


@pytest.mark.parametrize(
    ("parity", "quantization", "said"),
    [
        (45.0, 25.0, None),
        (21.0, 40.0, None),
        (15.0, 40.0, "a fault of the runtime"),
        (15.0, 12.0, "makes small differences large"),
        (15.0, 19.0, "makes small differences large"),
        (float("nan"), 20.0, "a fault of the runtime"),
    ],
)
def test_a_file_far_from_its_graph_gets_a_remark(parity: float, quantization: float, said: str | None) -> None:
    deployed = cast(Deployed, SimpleNamespace(parity_db=parity, quantization_db=quantization))
    found = _parity("openvino", deployed)
    assert (said is None) == (found == [])
    assert said is None or (said in found[0] and f"{parity} dB against the simulation" in found[0])


def test_the_same_network_has_the_same_hash_from_every_source(made: Path) -> None:
    first = load_model(Spots(), pipeline=PICTURES).network.fingerprint()
    assert load_model(f"{made}/networks.py:own", pipeline=PICTURES).network.fingerprint() == first
