from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from microtome.batches.calibration import WINDOWS_PER_CASE, CalibrationBatches, inputs
from microtome.batches.features import NetworkFeatures, contrast, farthest_first, in_turn, joined, tertiles
from microtome.batches.selection import STRATEGIES, balanced, select
from microtome.errors import OptionError, ReadError, SplitError
from microtome.graph.capture import capture
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.foreground import prepare_labels
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.progress import Silent
from microtome.types import Case

SPOT = ("background", "spot")
PICTURES = Pipeline("segmentation", SPOT, grayscale=True, normalize="unit")
CLASSES = Pipeline("classification", ("dark", "light"), grayscale=True, normalize="unit")
VOLUMES = Pipeline("segmentation", SPOT, spatial_dims=3, normalize="zscore", patch=(6, 6, 6))

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.segmentation_cohort(tmp_path_factory.mktemp("pictures"), cases=40, empty=6))


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.class_cohort(tmp_path_factory.mktemp("classes"), per_class=15))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.volume_cohort(tmp_path_factory.mktemp("volumes"), cases=10))


def foreground(cohort: Cohort, case: Case) -> int:
    mask = cohort.mask(case, cohort.image(case))
    assert mask is not None
    return int(np.count_nonzero(mask))


@every_strategy
def test_train_cases_only_patients_in_turn_and_the_same_each_time(pictures, strategy):
    def chosen(seed=1):
        return select(pictures, pictures.cases, pipeline=PICTURES, count=6, strategy=strategy, seed=seed)

    cases = chosen()
    assert len({case.id for case in cases}) == 6
    assert {case.role for case in cases} == {"train"}
    assert max(Counter(case.patient for case in cases).values()) == 1
    assert cases == chosen()
    if strategy != "first":
        assert len({tuple(case.id for case in chosen(seed)) for seed in range(4)}) > 1


@every_strategy
@pytest.mark.parametrize("count", [1, 1000])
def test_any_number_of_cases(classes, volumes, strategy, count):
    for cohort, pipeline in ((classes, CLASSES), (volumes, VOLUMES)):
        cases = select(cohort, cohort.cases, pipeline=pipeline, count=count, strategy=strategy)
        assert len({case.id for case in cases}) == len(cases) == min(count, len(cohort.train))


def test_first_is_what_the_cohort_says(pictures, classes):
    for cohort, pipeline in ((pictures, PICTURES), (classes, CLASSES)):
        assert select(cohort, cohort.cases, pipeline=pipeline, count=9) == cohort.calibration(9)


def test_strata_of_labels(classes):
    few_light = tuple(case for case in classes.train if case.label == 0 or case.id == light(classes)[0].id)
    cases = select(classes, classes.train, pipeline=CLASSES, count=8, strategy="stratified")
    assert Counter(case.label for case in cases) == {0: 4, 1: 4}
    cases = select(classes, few_light, pipeline=CLASSES, count=4, strategy="stratified")
    assert Counter(case.label for case in cases) == {0: 3, 1: 1}


def light(cohort: Cohort) -> list[Case]:
    return [case for case in cohort.train if case.label == 1]


def test_strata_of_subgroups():
    sites = ["A"] * 20 + ["B"] * 3 + ["C"] * 3
    cases = [made(k, subgroups={"site": site, "age": str(k)}) for k, site in enumerate(sites)]
    chosen = balanced(cases, 6, np.random.default_rng(0))
    assert Counter(case.subgroups["site"] for case in chosen) == {"A": 2, "B": 2, "C": 2}


def made(k: int, **fields) -> Case:
    return Case(f"case-{k}", f"patient-{k}", (Path(f"{k}.png"),), role="train", **fields)


def test_a_column_with_many_values_makes_no_groups():
    sites = "A" * 10 + "B" * 10
    cases = [made(k, subgroups={"site": s, "id": s if s == "B" else str(k)}) for k, s in enumerate(sites)]
    chosen = balanced(cases, 6, np.random.default_rng(0))
    assert Counter(case.subgroups["site"] for case in chosen) == {"A": 3, "B": 3}


@pytest.mark.parametrize("seed", range(3))
def test_strata_of_volumes(pictures, seed):
    cases = select(pictures, pictures.train, pipeline=PICTURES, count=8, strategy="stratified", seed=seed)
    every = {case.id: foreground(pictures, case) for case in pictures.train}
    present = {name: size for name, size in every.items() if size}
    thirds = dict(zip(present, tertiles(list(present.values())), strict=True))
    assert len(present) < len(every)
    assert Counter(thirds.get(case.id) for case in cases) == {None: 2, 0: 2, 1: 2, 2: 2}


def test_strata_of_volumes_of_volumes(volumes):
    cases = select(volumes, volumes.train, pipeline=VOLUMES, count=3, strategy="stratified")
    every = [foreground(volumes, case) for case in volumes.train]
    thirds = dict(zip((case.id for case in volumes.train), tertiles(every), strict=True))
    assert {thirds[case.id] for case in cases} == {0, 1, 2}


@pytest.mark.parametrize("strategy", ["stratified", "foreground", "diverse"])
def test_of_many_cases_some_are_looked_at(pictures, strategy, monkeypatch):
    monkeypatch.setattr("microtome.batches.selection.POOL", 3)
    cases = select(pictures, pictures.train, pipeline=PICTURES, count=2, strategy=strategy)
    assert len(cases) == 2
    assert len(select(pictures, pictures.train, pipeline=PICTURES, count=5, strategy=strategy)) == 5
    read = []
    image = Cohort.image
    monkeypatch.setattr(Cohort, "image", lambda cohort, case: read.append(case.id) or image(cohort, case))
    select(pictures, pictures.train, pipeline=PICTURES, count=2, strategy=strategy)
    assert len(read) == (3 if strategy == "diverse" else 0)  # masks say enough for the others


def test_foreground_takes_cases_that_have_some(pictures):
    cases = select(pictures, pictures.train, pipeline=PICTURES, count=6, strategy="foreground")
    median = np.median([foreground(pictures, case) for case in pictures.train])
    assert all(foreground(pictures, case) >= median for case in cases)


def test_without_masks_contrast_counts(pictures):
    bare = replace(pictures, cases=tuple(replace(case, mask=None) for case in pictures.cases))
    cases = select(bare, bare.train, pipeline=PICTURES, count=6, strategy="foreground")
    with_masks = {case.id: case for case in pictures.train}
    assert all(foreground(pictures, with_masks[case.id]) for case in cases)


def test_noise_is_no_contrast():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (1, 64, 64)).astype(np.float32)
    half = np.repeat([-1.0, 1.0], 32).astype(np.float32)[None, :, None] + 0 * noise
    assert contrast(half) > 3 * contrast(noise)


def test_windows_on_the_foreground(volumes):
    case = volumes.train[0]
    image = volumes.image(case)
    prepared = prepare(image, VOLUMES)
    labels = prepare_labels(volumes.mask(case, image), prepared)
    values = {array.tobytes() for array in inputs(volumes, case, VOLUMES, np.random.default_rng(0))}
    found = inputs(volumes, case, VOLUMES, np.random.default_rng(0), foreground=True)
    assert len(found) == WINDOWS_PER_CASE
    assert {array.shape for array in found} == {(1, 1, 6, 6, 6)}
    assert {array.tobytes() for array in found} != values
    spot = prepared.array[0][labels == 1].min()
    assert all(array[0, 0, 3, 3, 3] >= spot for array in found)
    batches = CalibrationBatches(volumes, [case], VOLUMES, Silent(), foreground=True)
    assert [x.numpy().tobytes() for x in batches] == [array.tobytes() for array in found]


def test_diverse_finds_the_odd_ones(pictures, monkeypatch):
    odd = {case.id for case in pictures.train[3:5]}
    read = Cohort.image

    def image(cohort, case):
        found = read(cohort, case)
        return replace(found, array=255 - found.array) if case.id in odd else found

    monkeypatch.setattr(Cohort, "image", image)
    cases = select(pictures, pictures.train, pipeline=PICTURES, count=4, strategy="diverse")
    assert {case.id for case in cases} & odd


@pytest.mark.parametrize(("cohort", "pipeline", "dims"), [("pictures", PICTURES, 2), ("volumes", VOLUMES, 3)])
def test_diverse_looks_into_the_network(cohort, pipeline, dims, request):
    data = request.getfixturevalue(cohort)
    network = capture(tiny.Spots(dims).eval(), shape=(1, *(pipeline.patch or (32, 32))))
    given = network.fingerprint()
    cases = select(data, data.train, pipeline=pipeline, count=3, strategy="diverse", network=network)
    assert len(cases) == 3
    assert network.fingerprint() == given


def test_features_of_a_network_are_mean_inputs():
    network = capture(tiny.Brightness().eval(), shape=(1, 8, 8))
    image = np.full((1, 8, 8), 0.5, np.float32)
    features = NetworkFeatures(network)([image[None], image[None] + 0.5])
    assert features.shape == (1 + 4,)
    assert features[0] == pytest.approx(0.75)
    module = tiny.Brightness()
    with torch.no_grad():
        head = torch.relu(module.conv(torch.from_numpy(np.stack([image, image + 0.5])))).mean((0, 2, 3))
    np.testing.assert_allclose(features[1:], head, rtol=1e-5)


@every_strategy
def test_an_image_that_cannot_be_read(pictures, strategy, monkeypatch):
    broken = pictures.train[0].id
    read = Cohort.image

    def image(cohort, case):
        if case.id == broken:
            raise ReadError("broken.")
        return read(cohort, case)

    monkeypatch.setattr(Cohort, "image", image)
    cases = select(pictures, pictures.train, pipeline=PICTURES, count=1000, strategy=strategy)
    assert (broken in {case.id for case in cases}) == (strategy != "diverse")  # only that one reads pictures here
    if strategy == "diverse":
        with pytest.raises(ReadError, match="broken"):
            select(pictures, pictures.train[:1], pipeline=PICTURES, count=1, strategy=strategy)


def test_what_makes_no_sense_is_refused(pictures):
    with pytest.raises(OptionError, match="no way 'best'"):
        select(pictures, pictures.train, pipeline=PICTURES, count=3, strategy="best")
    with pytest.raises(OptionError, match="at least one case"):
        select(pictures, pictures.train, pipeline=PICTURES, count=0, strategy="random")
    with pytest.raises(SplitError, match="for training"):
        select(pictures, pictures.evaluation, pipeline=PICTURES, count=3, strategy="random")


def test_farthest_first_by_hand():
    points = np.array([[0.0], [1.0], [10.0], [4.0], [10.5]])
    rng = np.random.default_rng(0)
    chosen = farthest_first(points, ["a", "b", "c", "d", "e"], 5, rng)
    start = chosen[0]
    for step in range(1, 5):
        rest = [k for k in range(5) if k not in chosen[:step]]
        nearest = {k: min(abs(points[k, 0] - points[j, 0]) for j in chosen[:step]) for k in rest}
        assert nearest[chosen[step]] == max(nearest.values())
    assert sorted(chosen) == list(range(5))
    assert start in range(5)
    for seed in range(5):
        patients = farthest_first(
            np.array([[0.0], [100.0], [1.0], [2.0]]), list("aabb"), 2, np.random.default_rng(seed)
        )
        assert {"aabb"[k] for k in patients} == {"a", "b"}


def test_features_weigh_alike():
    rows = [[np.array([k, 100.0 * k]), np.array([float(k % 2)])] for k in range(4)]
    points = joined(rows)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose([points[:, :2].var(0).sum(), points[:, 2:].var(0).sum()], 1)
    assert not joined([[np.ones(2)], [np.ones(2)]]).any()


def test_thirds():
    assert tertiles([5, 1, 9, 3, 7, 2]) == [1, 0, 2, 1, 2, 0]
    assert tertiles([1, 1, 1]) == [2, 2, 2]
    assert tertiles([]) == []


def test_turns():
    order = in_turn(["a", "a", "a", "b", "b", "c"], np.random.default_rng(0))
    assert sorted(order) == list(range(6))
    assert {"aaabbc"[k] for k in order[:3]} == set("abc")
