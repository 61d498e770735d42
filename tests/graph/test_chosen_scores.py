"""Which output holds the scores: told, or the only one that can; never the first of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microtome.errors import CaptureError
from microtome.graph.capture import capture
from microtome.graph.scores import Wish

MAPS, NUMBERS = Wish(maps=True), Wish(maps=False)


class Several(nn.Module):
    """Returns what `form` makes of a map (2 channels), the same at half the size, features (4), and numbers (3)."""

    def __init__(self, form: Callable[..., Any]) -> None:
        super().__init__()
        self.form, self.map, self.deep, self.last = form, nn.Conv2d(1, 2, 1), nn.Conv2d(1, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        scores, features = self.map(x), self.deep(x)
        return self.form(scores, nn.functional.avg_pool2d(scores, 2), features, self.last(features.mean((2, 3))))


FOUND: dict[str, tuple[Callable[..., Any], Wish, str, str]] = {
    "aux": (lambda m, h, f, n: {"aux": m, "out": m + 1}, Wish(), "out", "aux (for training only)"),
    "aux in a dict": (lambda m, h, f, n: {"seg": m, "aux_heads": {"0": m}}, Wish(), "seg", "aux_heads.0 (for"),
    "deep supervision": (lambda m, h, f, n: (h, m), Wish(), "output_1", "output (of lower resolution"),
    "a loss": (lambda m, h, f, n: {"value": m.mean(), "score_map": m}, Wish(), "score_map", "value (nothing of single"),
    "an argmax": (lambda m, h, f, n: (m.argmax(1), m), Wish(), "output_1", "output (decided already)"),
    "a known name": (lambda m, h, f, n: {"features": f, "logits": m}, Wish(), "logits", "features (of a less usual"),
    "a map for maps": (lambda m, h, f, n: {"mask": m, "label": n}, MAPS, "mask", "label (no scores of every"),
    "numbers for classes": (lambda m, h, f, n: {"mask": m, "label": n}, NUMBERS, "label", "mask (no numbers of"),
    "channels": (lambda m, h, f, n: (f, m), Wish(channels=frozenset({2})), "output_1", "output (of other channels)"),
    "all of it": (
        lambda m, h, f, n: {"net": [h, m], "label": n, "aux": m, "features": f},
        Wish(maps=True, channels=frozenset({1, 2})), "net.1", "features (of other channels)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_scores_are_found_and_a_note_says_what_is_left_out(case: str) -> None:
    form, wish, name, left = FOUND[case]
    module = Several(form).eval()
    network = capture(module, (1, 8, 8), keep=wish)
    assert [port.name for port in network.outputs] == [name]
    (note,) = network.notes
    assert f"the scores are taken from '{name}'" in note
    assert left in note


TWO = {
    "two of a tuple": (lambda m, h, f, n: (m, m + 1), Wish(), r"'output' \(N, 2, 8, 8\) and 'output_1' \(N, 2, 8, 8\)"),
    "features first": (lambda m, h, f, n: (f, m), Wish(), r"'output' \(N, 4, 8, 8\) and 'output_1' \(N, 2, 8, 8\)"),
    "two known names": (
        lambda m, h, f, n: {"mask": m, "label": n},
        Wish(),
        r"'mask' \(N, 2, 8, 8\) and 'label' \(N, 3\)",
    ),
    "a side is no side output": (
        lambda m, h, f, n: {"side": n, "grade": n + 1},
        NUMBERS,
        r"'side' \(N, 3\) and 'grade' \(N, 3\)",
    ),
    "two maps": (lambda m, h, f, n: {"mask": m, "logits": m, "y": n}, MAPS, r"2 outputs .* 'mask' .* and 'logits'"),
}


@pytest.mark.parametrize("case", TWO)
def test_two_candidates_are_named_with_what_to_do(case: str) -> None:
    form, wish, problem = TWO[case]
    with pytest.raises(CaptureError, match=problem) as caught:
        capture(Several(form).eval(), (1, 8, 8), keep=wish)
    assert "--output" in caught.value.hint
    assert '"output": "' in caught.value.hint


def test_others_are_kept_behind_the_scores() -> None:
    module = Several(lambda m, h, f, n: {"label": n, "mask": m, "aux": m}).eval()
    network = capture(module, (1, 8, 8), keep=Wish(also=("label",)))
    assert [port.name for port in network.outputs] == ["mask", "label"]
    told = capture(module, (1, 8, 8), keep=Wish("label", ("mask",)))
    assert ([port.name for port in told.outputs], told.notes) == (["label", "mask"], ())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network.run(x)["label"], told(x))
    with pytest.raises(CaptureError, match="no output 'lable'"):
        capture(module, (1, 8, 8), keep=Wish(also=("lable",)))
