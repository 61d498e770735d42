"""Boxes: by hand, against pycocotools and MONAI; weights are repeats; what nobody can tell."""

import contextlib
import io

import numpy as np
import pytest
from monai.metrics.froc import compute_froc_score

from microtome.clinical.boxes import iou, kept, matched, volumes
from microtome.clinical.detection import AT, OVERLAPS, BoxesCase, operating_points, same_boxes, summarise_boxes
from microtome.clinical.froc import RATES, hits_of

EXACT = 1e-9  # the same float64 arithmetic in another order
NAMES = ("nodule", "mass")


def images(seed: int = 0, n: int = 12, d: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Findings near the references, some wrong, many with one score; (n, 2 + 2·d) and (m, 1 + 2·d)."""
    random = np.random.default_rng(seed)
    found, references = [], []
    for _ in range(n):
        count = int(random.integers(0, 4))
        low = random.uniform(0, 60, (count, d))
        boxes = np.concatenate([low, low + random.uniform(8, 30, (count, d))], axis=1)
        labels = random.integers(0, 2, (count, 1))
        near = np.repeat(boxes, 2, axis=0) + random.normal(size=(2 * count, 2 * d)) * 3
        far_low = random.uniform(0, 60, (3, d))
        far = np.concatenate([far_low, far_low + random.uniform(8, 30, (3, d))], axis=1)
        classes = np.concatenate([np.repeat(labels, 2, axis=0), random.integers(0, 2, (3, 1))])
        scores = np.round(random.uniform(0.05, 1, (2 * count + 3, 1)), 1)
        found.append(np.concatenate([classes, scores, np.concatenate([near, far])], axis=1))
        references.append(np.concatenate([labels, boxes], axis=1))
    return found, references


def cases(found: list, references: list, after: list | None = None, patients: int = 100) -> list[BoxesCase]:
    return [
        BoxesCase(f"c{i}", f"p{i % patients}", one, one if after is None else after[i], reference)
        for i, (one, reference) in enumerate(zip(found, references, strict=True))
    ]


def test_overlap_by_hand() -> None:
    ours = np.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 9.0]])
    theirs = np.array([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0]])
    assert iou(ours, theirs) == pytest.approx(np.array([[1 / 7, 1.0], [0.0, 0.0]]))
    cube = np.array([[0.0, 0.0, 0.0, 2.0, 2.0, 2.0]])
    assert iou(cube, cube + np.array([1, 0, 0, 1, 0, 0])) == pytest.approx(np.array([[4 / 12]]))
    assert volumes(cube) == pytest.approx([8.0])


def test_each_finding_takes_the_best_free_reference() -> None:
    overlap = np.array([[0.6, 0.7], [0.0, 0.9], [0.55, 0.1], [0.9, 0.9]])
    assert matched(overlap, 0.5).tolist() == [1, -1, 0, -1]
    assert matched(np.zeros((2, 0)), 0.5).tolist() == [-1, -1]


def test_boxes_that_overlap_a_better_one_are_dropped() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 3]], float)
    assert kept(boxes, np.array([0.5, 0.9, 0.1, 0.4]), 0.5).tolist() == [1, 3, 2]


def test_average_precision_is_that_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    for seed in range(4):
        found, references = images(seed)
        data: dict = {
            "images": [{"id": i + 1} for i in range(len(found))],
            "categories": [{"id": k + 1} for k in range(2)],
            "annotations": [],
        }
        for i, rows in enumerate(references):
            for label, y0, x0, y1, x1 in rows.tolist():
                area = (x1 - x0) * (y1 - y0)
                entry: dict = {"image_id": i + 1, "category_id": int(label) + 1, "area": area, "iscrowd": 0}
                data["annotations"].append(
                    {**entry, "id": len(data["annotations"]) + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                )
        results = [
            {"image_id": i + 1, "category_id": int(label) + 1, "score": score, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for i, rows in enumerate(found)
            for label, score, y0, x0, y1, x1 in rows.tolist()
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco.COCO()
            truth.dataset = data
            truth.createIndex()
            judge = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        ours = summarise_boxes(cases(found, references), NAMES, resamples=5)["parent"]["metrics"]
        assert ours["map"]["value"] == pytest.approx(judge.stats[0], abs=EXACT)
        assert ours["ap50"]["value"] == pytest.approx(judge.stats[1], abs=EXACT)


def test_froc_is_that_of_monai() -> None:
    found, references = images(7, n=30)
    for rows in found:
        rows[:, 1] += np.random.default_rng(len(rows)).uniform(0, 1e-3, len(rows))  # MONAI leaves ties open
    hits = hits_of(found, references, 0, 0.1)
    weights = np.ones((1, 30))
    false, sensitivity = hits.curve()
    for rate in RATES:
        ours = hits.sensitivities(weights, (rate,))[0, 0]
        theirs = compute_froc_score(false[::-1], sensitivity[::-1], (rate,))
        steps = np.flatnonzero(false <= rate)
        assert ours >= theirs - EXACT  # at a rate that is a point of the curve MONAI takes any of its heights
        assert ours == pytest.approx(theirs, abs=EXACT) or rate in false
        assert ours >= sensitivity[steps].max() - EXACT


@pytest.mark.parametrize("d", [2, 3])
def test_a_weight_is_a_repeat(d: int) -> None:
    found, references = images(3, n=8, d=d)
    weights = np.array([[0, 2, 1, 0, 3, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]], float)
    hits = hits_of(found, references, 1, 0.5)
    for row in weights:
        places = np.repeat(np.arange(8), row.astype(int))
        again = hits_of([found[k] for k in places], [references[k] for k in places], 1, 0.5)
        whole = np.ones((1, len(places)))
        ours, theirs = hits.sensitivities(row[None])[:, 0], again.sensitivities(whole)[:, 0]
        assert ours == pytest.approx(theirs, abs=EXACT)
        assert [x[0] for x in hits.at(0.5, row[None])] == pytest.approx([x[0] for x in again.at(0.5, whole)])


def test_a_weight_is_a_repeat_for_precision_without_ties() -> None:
    found, references = images(3, n=8)
    for k, rows in enumerate(found):
        rows[:, 1] = np.random.default_rng(k).permutation(100)[: len(rows)] / 100 + k / 1000
    row = np.array([[0, 2, 1, 0, 3, 1, 1, 0]], float)
    hits = hits_of(found, references, 1, 0.5)
    places = np.repeat(np.arange(8), row[0].astype(int))
    again = hits_of([found[k] for k in places], [references[k] for k in places], 1, 0.5)
    # copies of a case have equal scores, of which the right ones may come after wrong ones: never better than at once
    assert hits.average_precision(row)[0] == pytest.approx(again.average_precision(np.ones((1, 8)))[0], abs=0.03)


def test_perfect_findings_and_none_at_all() -> None:
    _, references = images()
    perfect = [np.insert(rows, 1, 0.9, axis=1) for rows in references]
    nothing = [rows[:0] for rows in perfect]
    found = summarise_boxes(cases(perfect, references, nothing), NAMES, thresholds=[0.5, 0.5], resamples=50)
    first, second = found["parent"]["metrics"], found["compressed"]["metrics"]
    assert [first[m]["value"] for m in ("map", "froc", "hits", "false")] == pytest.approx([1.0, 1.0, 1.0, 0.0])
    assert [second[m]["value"] for m in ("map", "froc", "hits", "false")] == pytest.approx([0.0, 0.0, 0.0, 0.0])
    assert found["verdict"]["non_inferior"] is False
    assert set(AT) <= set(first)
    assert len(OVERLAPS) == 10


def test_what_forbids_a_verdict() -> None:
    found, references = images()
    same = summarise_boxes(cases(found, references), NAMES, resamples=100)
    assert (same["verdict"]["non_inferior"], same["agreement"]["value"]) == (True, 1.0)
    empty = [rows[:0] for rows in references]
    result = summarise_boxes(cases(found, empty), NAMES, resamples=20)
    assert (result["verdict"]["non_inferior"], result["verdict"]["cause"]) == (None, "reference")
    nothing = [rows[:0] for rows in found]
    weak = summarise_boxes(cases(nothing, references), NAMES, resamples=20)["verdict"]
    assert (weak["non_inferior"], weak["cause"]) == (None, "parent")
    one = [rows[rows[:, 0] == 0] for rows in references]
    left = summarise_boxes(cases(found, one), NAMES, resamples=50)
    assert left["verdict"]["left_out"] == ["mass"]
    assert left["parent"]["metrics"]["froc"]["value"] == left["parent"]["metrics"]["froc/nodule"]["value"]
    alone = summarise_boxes(cases(found, references, patients=1), NAMES, resamples=20)
    assert alone["verdict"]["non_inferior"] is None


def test_the_operating_point_has_the_highest_f1() -> None:
    found, references = images(5, n=30)
    thresholds = operating_points(found, references, 3)
    assert thresholds[2] is None
    for k in range(2):
        hits = hits_of(found, references, k, 0.1)

        def f1(threshold: float, hits=hits) -> float:
            counted = hits.scores >= threshold
            return 2 * (counted & hits.right).sum() / (counted.sum() + hits.wanted.sum())

        assert f1(thresholds[k]) == max(f1(score) for score in hits.scores)


def test_agreement_pairs_findings_of_one_class() -> None:
    boxes = np.array([[0, 0.9, 0, 0, 10, 10], [1, 0.8, 20, 20, 30, 30]], float)
    other = boxes.copy()
    other[1, 0] = 0
    assert same_boxes(boxes, boxes) == 1.0
    assert same_boxes(boxes, other) == 0.5
    assert same_boxes(boxes[:0], boxes[:0]) == 1.0
    assert same_boxes(boxes, boxes[:0]) == 0.0
