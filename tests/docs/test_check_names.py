"""The check of names in the documentation: it finds what is not there, and leaves alone what is."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

sys.path.append(str(ROOT / "docs"))
spec = importlib.util.spec_from_file_location("docs_check_names", ROOT / "docs" / "check_names.py")
assert spec is not None
assert spec.loader is not None
check_names = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = check_names  # dataclasses look their module up
spec.loader.exec_module(check_names)

PROJECT = check_names.Project(ROOT)


def faults(page: str) -> list[tuple[int, str]]:
    return sorted(set(check_names.check(page, PROJECT, ROOT / "docs")))


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("See\n`graph/colours.py`.", (2, "there is no file graph/colours.py")),
        ("`colours.py`", (1, "there is no file colours.py")),
        ("`tests/colours/`", (1, "there is no file tests/colours/")),
        ("[this](colours.md)", (1, "there is no file colours.md")),
        ("`microtome.core.colours`", (1, "there is no microtome.core.colours")),
        ("`graph.edit.paint`", (1, "there is no graph.edit.paint")),
        ("`Network.colour`", (1, "there is no Network.colour")),
        ("`PaintWeights`", (1, "nothing is called PaintWeights")),
        ("`Quantize(colour=3)`", (1, "Quantize does not take all of: colour")),
        ("`microtome paint`", (1, "microtome has no command paint")),
        ("`--colour`", (1, "--colour is no option of microtome")),
        ("`--recipe colourful`", (1, "--recipe takes no colourful")),
        ("`--target abacus`", (1, "--target takes no abacus")),
        ("`--observer crystal`", (1, "--observer takes no crystal")),
        ("`--format zip`", (1, "--format takes no zip")),
        ("`make paint`", (1, "there is no make target paint")),
        ("::: microtome.colours", (1, "there is no microtome.colours")),
        ("```sh\nmicrotome bench package/ \\\n  --margin 1\n```", (2, "--margin is no option of microtome bench")),
        ("```sh\ncd here\n  python benchmarks/colours.py\n```", (3, "there is no file benchmarks/colours.py")),
        ("```sh\nmake test && make paint\nmake paint\n```", (3, "there is no make target paint")),
        ("```python\nfrom microtome import paint\n```", (2, "there is no microtome.paint")),
        ("```python\n\nmicrotome.paint(3)\n```", (3, "there is no microtome.paint")),
        (
            "```python\nmicrotome.open_package('here', colour=3)\n```",
            (2, "microtome.open_package does not take all of: colour"),
        ),
        ("```python\nx = = 3\n```", (2, "this is no Python")),
        ("!!! note\n    ```text\n    src/microtome/\n      paint/\n    ```", (4, "there is no file paint/")),
    ],
)
def test_what_is_not_there_is_found(page: str, fault: tuple[int, str]):
    assert faults(page) == [fault]


@pytest.mark.parametrize(
    "page",
    [
        "`runtimes/NAME.py`, `my_model.py:make`, `images/`, `../elsewhere`, `~/.cache/microtome/colours`",
        "`graph/edit.py`, `core/`, `docs/index.md`, [this](index.md#here), [that](https://example.org/x)",
        "`microtome.core.affine.fake_quantize`, `graph.edit`, `Network.shape`, `Capabilities`, `result.json`",
        "`--recipe NAME`, `--recipe auto`, `microtome --version`, `pip install --colour x`, `int8`",
        '`Quantize(EVERYTHING, weight_bits=4)`, `print(colour=3)`, `{"colour": 3}`',
        "```json\n--colour graph/colours.py\n```",
        "```sh\nmicrotome compress MODEL cohort/ -o out --weights best.pt  # see graph\n```",
        "```python\nimport microtome\n\nx = {1: 2, ...}\nmicrotome.compress(x, 'cohort', 'out')\n```",
    ],
)
def test_what_is_there_or_not_ours_is_left_alone(page: str):
    assert faults(page) == []


def test_the_pages_named_are_read_and_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "good.md").write_text("`graph.edit`")
    (tmp_path / "bad.md").write_text("`graph.edit`\n\n`graph.colours`")
    assert check_names.main([str(tmp_path / "good.md")]) == 0
    assert "1 pages, 0 names" in capsys.readouterr().out
    assert check_names.main([str(tmp_path / "good.md"), str(tmp_path / "bad.md")]) == 1
    assert f"{tmp_path / 'bad.md'}:3: there is no graph.colours" in capsys.readouterr().out
