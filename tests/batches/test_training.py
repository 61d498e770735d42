import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from microtome.batches.training import TrainingBatches, TuningBatches
from microtome.core.label_losses import UNKNOWN
from microtome.errors import GeometryError, LabelError, OptionError, SplitError
from microtome.medical.augment import Augmentation, augment
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.foreground import foreground_points, prepare_labels, window_at
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare, restore
from microtome.types import Image

SPOT = ("background", "spot")
PICTURES = Pipeline("segmentation", SPOT, grayscale=True, size=(32, 32), normalize="unit")
PATCHES = Pipeline("segmentation", SPOT, spatial_dims=3, orientation="RAS", normalize="zscore", patch=(8, 8, 8))
CLASSES = Pipeline("classification", ("dark", "light"), grayscale=True, size=(16, 16), normalize="unit")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.segmentation_cohort(tmp_path_factory.mktemp("pictures"), cases=20, empty=0), tuning=0.3)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.volume_cohort(tmp_path_factory.mktemp("volumes"), cases=12), tuning=0.3)


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Cohort:
    return load_cohort(tiny.class_cohort(tmp_path_factory.mktemp("classes"), per_class=10))


def same(first, second) -> bool:
    pairs = itertools.zip_longest(first, second)
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def test_an_epoch_shows_every_case_once(pictures):
    batches = TrainingBatches(pictures, pictures.train, PICTURES, batch=3, augment=False)
    epoch = list(batches)
    assert len(epoch) == len(batches) == -(-len(pictures.train) // 3)
    assert {x.dtype for x in epoch} == {torch.float32}
    assert epoch[0].shape == (3, 1, 32, 32)
    shown = torch.cat(epoch)
    wanted = np.stack([prepare(pictures.image(case), PICTURES).array for case in pictures.train])
    order = np.abs(shown.numpy()[:, None] - wanted[None]).max(axis=(2, 3, 4)).argmin(1)
    assert sorted(order) == list(range(len(pictures.train)))
    np.testing.assert_allclose(shown.numpy(), wanted[order], atol=2**-11)  # half of a step of float16 below 1


def test_epochs_differ_and_can_be_repeated(pictures):
    def made() -> TrainingBatches:
        return TrainingBatches(pictures, pictures.train, PICTURES, batch=4, seed=5)

    batches = made()
    first, second = list(batches), list(batches)
    assert batches.epoch == 2
    assert not same(first, second)
    assert same(first, made())
    again = made()
    again.epoch = 1
    assert same(second, again)
    assert not same(first, TrainingBatches(pictures, pictures.train, PICTURES, batch=4, seed=6))


def test_cases_are_shuffled_anew(pictures):
    batches = TrainingBatches(pictures, pictures.train, PICTURES, batch=1, augment=False)
    first, second = ([x.numpy().tobytes() for x in batches] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second)


def test_an_epoch_that_is_left_halfway_does_not_count(pictures):
    batches = TrainingBatches(pictures, pictures.train, PICTURES, batch=2)
    first = next(iter(batches))
    assert batches.epoch == 0
    assert torch.equal(first, next(iter(batches)))


@pytest.mark.parametrize(("cohort", "pipeline"), [("pictures", PICTURES), ("volumes", PATCHES)])
def test_what_is_cached_changes_nothing(cohort, pipeline, request, monkeypatch):
    data = request.getfixturevalue(cohort)
    fresh = TrainingBatches(data, data.train, pipeline, cached_bytes=0, labelled=True)
    cached = TrainingBatches(data, data.train, pipeline, labelled=True)
    for _ in range(2):
        for (x, y), (a, b) in zip(fresh, cached, strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)
    monkeypatch.setattr(Cohort, "image", lambda *_: pytest.fail("read again"))
    assert len(list(cached)) == len(cached)
    with pytest.raises(pytest.fail.Exception):
        list(fresh)


def test_the_cache_stops_at_its_limit(pictures):
    one = 32 * 32 * 2
    batches = TrainingBatches(pictures, pictures.train, PICTURES, cached_bytes=3 * one + 1)
    list(batches)
    assert sum(example.nbytes for example in batches._cache.values()) == 3 * one


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_cases(pictures, world):
    def shard(rank: int) -> TrainingBatches:
        return TrainingBatches(pictures, pictures.train, PICTURES, batch=2, augment=False, rank=rank, world=world)

    shards = [shard(rank) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    epochs = [list(shard) for shard in shards]
    assert len({tuple(len(x) for x in epoch) for epoch in epochs}) == 1
    assert [len(epoch) for epoch in epochs] == [len(shard) for shard in shards]
    seen = [image.numpy().tobytes() for epoch in epochs for x in epoch for image in x]
    assert len(set(seen)) == len(seen) == len(pictures.train) // world * world


def test_labels_lie_where_the_spots_are(pictures):
    for x, y in TrainingBatches(pictures, pictures.train, PICTURES, labelled=True, flips=(0, 1)):
        assert y.dtype == torch.int64
        assert y.shape == (len(x), 32, 32)
        for image, label in zip(x[:, 0], y, strict=True):
            bright = image > image[label == 0].mean() + 0.27  # half of the contrast of 140 / 255
            assert (bright == label.bool()).float().mean() > 0.97


def test_labels_of_windows_lie_where_the_spots_are(volumes):
    batches = TrainingBatches(volumes, volumes.train, PATCHES, labelled=True, augment=False)
    for (x, y), _ in itertools.product(batches, range(2)):
        assert x.shape[1:] == (1, 8, 8, 8)
        assert y.shape[1:] == (8, 8, 8)
        inside = x[:, 0][y == 1]
        if len(inside):
            assert inside.median() > x[:, 0][y == 0].median() + 1


def test_half_of_the_windows_stand_on_the_foreground(volumes):
    batches = TrainingBatches(volumes, volumes.train, PATCHES, labelled=True, augment=False)
    centres = [y[:, 4, 4, 4].float() for _ in range(20) for _, y in batches]
    assert 0.4 < torch.cat(centres).mean() < 0.9
    bare = replace(volumes, cases=tuple(replace(case, mask=None) for case in volumes.cases))
    assert next(iter(TrainingBatches(bare, bare.train, PATCHES))).shape == (4, 1, 8, 8, 8)


def test_classes_are_labels(classes):
    pairs = list(TrainingBatches(classes, classes.train, CLASSES, batch=3, labelled=True))
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert x.shape[1:] == (1, 16, 16)
    assert y.dtype == torch.int64
    assert sorted(y.tolist()) == sorted(case.label for case in classes.train)


def test_images_of_any_size_come_one_by_one(pictures):
    pipeline = replace(PICTURES, size=None)
    batches = TrainingBatches(pictures, pictures.train, pipeline, batch=4)
    assert [len(x) for x in batches] == [1] * len(batches)
    assert len(batches) == len(pictures.train)


def test_large_values_survive_the_cache(volumes, monkeypatch):
    pipeline = replace(PATCHES, normalize="none")
    read = Cohort.image
    bright = 1000.0  # values of up to 230 become more than float16 holds
    monkeypatch.setattr(Cohort, "image", lambda *a: replace(read(*a), array=read(*a).array * bright))
    batches = TrainingBatches(volumes, volumes.train, pipeline, augment=False)
    assert all(torch.isfinite(x).all() for _ in range(2) for x in batches)


def test_what_makes_no_sense_is_refused(pictures):
    def made(cases=pictures.train, **settings):
        return TrainingBatches(pictures, cases, PICTURES, **settings)

    with pytest.raises(OptionError, match="at least one image"):
        made(batch=0)
    with pytest.raises(OptionError, match="no spatial axis"):
        made(flips=(2,))
    with pytest.raises(OptionError, match="rank 2 does not exist among 2"):
        made(rank=2, world=2)
    with pytest.raises(OptionError, match="2 cases cannot be shared out to 3"):
        made(pictures.train[:2], world=3)
    with pytest.raises(SplitError, match="no cases to train on"):
        made(())
    with pytest.raises(SplitError, match="kept for tuning or evaluation"):
        made((*pictures.train, pictures.evaluation[0]))
    with pytest.raises(LabelError, match="has no reference"):
        made((replace(pictures.train[0], mask=None),), labelled=True)


def test_tuning_images_are_read_once(pictures, monkeypatch):
    batches = TuningBatches(pictures, PICTURES, limit=3)
    first = list(batches)
    assert [x.shape for x in first] == [(1, 1, 32, 32)] * 3
    monkeypatch.setattr(Cohort, "image", lambda *_: pytest.fail("read again"))
    assert same(first, batches)


def test_tuning_images_are_of_tuning_patients(pictures):
    shown = {x.half().numpy().tobytes() for x in TuningBatches(pictures, PICTURES, limit=100)}
    wanted = {prepare(pictures.image(c), PICTURES).array.astype(np.float16).tobytes() for c in pictures.tuning}
    assert shown == wanted


def test_tuning_images_stop_at_their_limit(pictures):
    assert len(list(TuningBatches(pictures, PICTURES, cached_bytes=5000))) == 2
    assert len(list(TuningBatches(pictures, PICTURES, cached_bytes=1))) == 1
    with pytest.raises(SplitError, match="no tuning cases"):
        TuningBatches(replace(pictures, cases=pictures.train), PICTURES)


# Augmentation and foreground, on which the batches rest.


def test_no_augmentation_changes_nothing():
    image = np.random.default_rng(0).normal(size=(2, 9, 7)).astype(np.float32)
    labels = (image[0] > 0).astype(np.uint8)
    x, y = augment(image, labels, Augmentation(0, 0, 0, 0), np.random.default_rng(0))
    np.testing.assert_array_equal(x, image)
    np.testing.assert_array_equal(y, labels)


def test_mirrors_stay_on_their_axes():
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6) + 1
    seen = set()
    for seed in range(20):
        x, y = augment(image, image[0], Augmentation(0, 0, 0, 0, flips=(1,)), np.random.default_rng(seed))
        np.testing.assert_array_equal(x[0], y)
        seen.add(x.tobytes())
    assert seen == {image.tobytes(), image[:, :, ::-1].tobytes()}


def test_shifts_move_image_and_labels_alike():
    ramp = np.linspace(1, 2, 101, dtype=np.float32)[None, :, None].repeat(3, 2)
    x, y = augment(ramp, np.arange(101)[:, None].repeat(3, 1), Augmentation(0.05, 0.1, 0, 0), np.random.default_rng(3))
    np.testing.assert_allclose(x[0], 1 + y / 100, atol=0.005001)  # nearest neighbour is half a voxel off at most
    assert not np.array_equal(x, ramp)


def test_zeros_stay_zeros():
    image = np.zeros((1, 8, 8), np.float32)
    image[:, 2:5] = np.random.default_rng(0).normal(5, 1, (1, 3, 8))
    x, _ = augment(image, None, Augmentation(0, 0, 0.5, 0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(x == 0, image == 0)
    assert not np.allclose(x, image)
    with pytest.raises(OptionError, match="below 1"):
        Augmentation(scale=1.0)


@pytest.mark.parametrize("settings", [{}, {"orientation": "LIA"}, {"crop": "foreground"}, {"divisible": 16}])
def test_labels_come_back_from_the_networks_grid(settings):
    rng = np.random.default_rng(0)
    array = np.zeros((1, 12, 10, 8), np.float32)
    array[:, 2:9, 3:9, 1:7] = rng.uniform(1, 2, (1, 7, 6, 6))
    labels = ((array[0] > 1.5) * 2).astype(np.uint8)
    prepared = prepare(Image(array, np.eye(4)), Pipeline("segmentation", ("a", "b", "c"), spatial_dims=3, **settings))
    there = prepare_labels(labels, prepared)
    assert there.shape == prepared.array.shape[1:]
    np.testing.assert_array_equal(there == 2, prepared.array[0] > 1.5)
    content = tuple(slice(0, n) for n in prepared.content)
    np.testing.assert_array_equal(restore(there[content], prepared), labels)


def test_labels_are_resized_with_the_image():
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 20:] = 1
    prepared = prepare(Image(labels[None] * 255), Pipeline("segmentation", ("a", "b"), size=(20, 10), normalize="unit"))
    np.testing.assert_array_equal(prepare_labels(labels, prepared), prepared.array[0] > 0.5)
    steps = np.arange(81, dtype=np.uint8).reshape(9, 9)
    prepared = prepare(Image(steps[None]), Pipeline("segmentation", ("a", "b"), size=(3, 9)))
    np.testing.assert_array_equal(prepare_labels(steps, prepared), steps[1::3])
    with pytest.raises(GeometryError, match="size"):
        prepare_labels(labels[:-1], prepared)


def test_points_of_each_structure():
    labels = np.zeros((6, 6), np.uint8)
    labels[1, 1], labels[3:, 3:] = 7, 2
    two, seven = foreground_points(labels, np.random.default_rng(0), 4)
    assert len({tuple(p) for p in two}) == 4
    assert all(labels[tuple(p)] == 2 for p in two)
    assert seven.tolist() == [[1, 1]]
    assert foreground_points(np.zeros((2, 2), int), np.random.default_rng(0), 4) == ()


def test_windows_lie_around_their_voxel():
    array = np.arange(70).reshape(1, 10, 7)
    window = window_at(array, (5, 3), (4, 4))
    np.testing.assert_array_equal(window[0], array[0, 3:7, 1:5])
    np.testing.assert_array_equal(window_at(array, (0, 6), (4, 4))[0], array[0, :4, 3:])
    small = window_at(array, (9, 0), (4, 9))
    np.testing.assert_array_equal(small[0, :, 1:8], array[0, 6:])
    assert not small[0, :, [0, 8]].any()


def test_cases_without_a_reference_are_marked_where_that_is_allowed(pictures, volumes, classes):
    some = replace(pictures, cases=tuple(replace(c, mask=None) if k % 2 else c for k, c in enumerate(pictures.cases)))
    pairs = list(TrainingBatches(some, some.train, PICTURES, labelled=True, partly=True))
    y = torch.cat([y for _, y in pairs])
    unknown = (y == UNKNOWN).flatten(1).all(1)
    assert sorted(unknown.tolist()) == sorted(case.mask is None for case in some.train)
    assert not bool((y[~unknown] == UNKNOWN).any())
    bare = replace(volumes, cases=tuple(replace(case, mask=None) for case in volumes.cases))
    ((x, y), *_) = TrainingBatches(bare, bare.train, PATCHES, labelled=True, partly=True)
    assert y.shape == (len(x), 8, 8, 8)
    assert y.unique().tolist() == [UNKNOWN]
    none = replace(classes, cases=tuple(replace(case, label=None) for case in classes.cases))
    ((_, y), *_) = TrainingBatches(none, none.train, CLASSES, labelled=True, partly=True)
    assert y.tolist() == [UNKNOWN] * len(y)
