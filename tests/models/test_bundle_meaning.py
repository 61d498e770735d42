"""What a bundle's output is for, what its steps come to, and what is said where they come to nothing."""

import random
from dataclasses import replace

import pytest

from microtome.medical.pipeline import Pipeline
from microtome.models.bundles import inferers, outputs, transforms
from microtome.models.bundles.declared import Declared, at_key, kind_of
from microtome.models.bundles.known import HARMLESS, UNSUPPORTED
from microtome.models.bundles.translate import translate

LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0]}
NAMES = {"0": "background", "1": "a", "2": "b"}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
HALF = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}


def made(before=LOAD, after=(), *, shape=(96, 96, 96), channels=1, others=None, config=None, **prediction):
    image = {"num_channels": channels, "spatial_shape": list(shape)}
    given = {"preprocessing": {"_target_": "Compose", "transforms": list(before)}, **(config or {})}
    given |= {"postprocessing": {"transforms": list(after)}} if after else {}
    facts = {"format": "segmentation", "spatial_shape": list(shape), "channel_def": NAMES, **prediction}
    return translate(Declared(given, image, facts, others=others or {}))


@pytest.mark.parametrize(
    ("facts", "task"),
    [
        ({"type": "image", "format": "segmentation"}, "segmentation"),
        ({"type": "probabilities", "format": "classes", "spatial_shape": [1, 3]}, "classification"),
        # an image-shaped output of classes, and labels of voxels or of the image: four of the model zoo's classifiers
        ({"type": "image", "format": "classes", "spatial_shape": [96, 96, 96]}, "classification"),
        ({"type": "image", "format": "labels", "spatial_shape": [1, 3]}, "classification"),
        ({"type": "image", "format": "labels", "spatial_shape": [96, 96, 96]}, "segmentation"),
        ({"type": "probability", "format": "classification", "spatial_shape": [1, 1]}, "classification"),
        ({"type": "tuples", "format": "regression", "spatial_shape": [1, 3]}, "regression"),
        ({"type": "image", "format": "magnitude"}, "image-to-image"),
    ],
)
def test_the_task_is_that_of_the_format(facts, task):
    assert made(**facts).pipeline.task == task


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"type": "tuples", "format": "points", "spatial_shape": [2, 10]}, "points"),
        ({"type": "object", "format": "dict"}, "boxes or other objects"),
        ({"type": "image", "format": "magnitude", "spatial_shape": [64, 64]}, "an image of something else"),
        ({"type": "image", "format": "kspace"}, "of the format 'kspace'"),
        ({"format": "regression"}, "a map of numbers"),
        ({"format": ""}, "of a format that its metadata do not name"),
        ({"format": "segmentation", "spatial_shape": [40, 40, 40]}, "the size 40×40×40, its input 96×96×96"),
    ],
)
def test_what_has_no_task_is_said_and_is_no_pipeline(facts, words):
    found = made(**facts)
    assert found.pipeline is None
    assert words in found.problem
    assert found.notes[-1] == found.problem
    assert len(found.steps) == len(LOAD)


def test_labels_may_be_defined_instead_of_channels_and_numbers_in_any_order():
    found = made(channel_def=None, label_def={"2": "b", "0": "background", "1": "a"})
    assert found.pipeline.classes == ("background", "a", "b")
    assert "do not name the classes" in made(channel_def={"0": "background", "2": "b"}).problem
    assert "do not name the classes" in made(channel_def={"0": "a", "1": "a"}).problem


def test_sizes_may_be_text():
    assert made(shape=("96", "96", "8*n")).pipeline.divisible == 8
    assert made(shape=("256", "256"), spatial_shape=["164", "164"]).pipeline is None
    assert made(shape=("256", "256"), spatial_shape=[256, 256]).pipeline.spatial_dims == 2


def test_settings_are_worked_out():
    config = {
        "highres": {"on": False},
        "spacing": "$[1.5, 1.5, 1.5] if @highres#on else [3.0, 3.0, 3.0]",
        "raw": False,
        "more": [{"_target_": "ScaleIntensityd", "keys": "@key"}],
        "first": [{**SPACING, "pixdim": "@spacing"}, {**SPACING, "_disabled_": "$not @raw"}],
        "key": "$monai.utils.CommonKeys.IMAGE",
    }
    found = made("$@first + @more", config={**config, "preprocessing": "$@first + @more"})
    assert found.notes == ()
    assert (found.pipeline.spacing, found.pipeline.normalize) == ((3.0, 3.0, 3.0), "minmax")
    unknown = made([{**SPACING, "_disabled_": "$os.path.exists('x')"}])
    assert "whether it is disabled" in unknown.notes[0]
    assert unknown.pipeline.spacing is None


def test_what_the_evaluator_takes_goes_before_what_is_called_so():
    config = {
        "inferer": {"_target_": "SimpleInferer"},
        "windows": {"_target_": "SlidingWindowInferer", "roi_size": 32},
        "evaluator": {"_target_": "SupervisedEvaluator", "inferer": "@windows", "postprocessing": "@after"},
        "after": {"_target_": "Compose", "transforms": [{**HALF, "threshold": 0.25}]},
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$@files",
            "transform": {"_target_": "Compose", "transforms": [SPACING]},
        },
    }
    found = made(LOAD, config=config, channel_def={"0": "a"})
    assert [step.name for step in found.steps] == ["Spacingd", "SlidingWindowInferer", "AsDiscreted"]
    assert (found.pipeline.patch, found.pipeline.threshold) == ((32, 32, 32), 0.25)
    config["other"] = {**config["evaluator"], "inferer": "@inferer"}
    assert made(LOAD, config=config, channel_def={"0": "a"}).pipeline.patch is None


def test_settings_of_several_items_are_those_of_the_image():
    both = {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": [1, 1, 2], "mode": ["bilinear", "nearest"]}
    assert made([*LOAD, both]).notes == ()
    turned = {**both, "keys": ["label", "image"]}
    assert any("nearest" in note for note in made([*LOAD, turned]).notes)
    assert at_key(both, ("image",))["mode"] == "bilinear"
    assert at_key(both, ("image",))["pixdim"] == [1, 1, 2]


def several(*steps, keys=("t1", "t2")):
    return [{"_target_": "LoadImaged", "keys": list(keys)}, *steps]


def test_channels_of_several_files_are_treated_alike_or_it_is_said():
    both = {"_target_": "ScaleIntensityd", "keys": ["t1", "t2"]}
    join = {"_target_": "ConcatItemsd", "keys": ["t2", "t1"], "name": "image"}
    after = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    found = made(several(both, join, after), channels=2)
    assert [step.verdict for step in found.steps] == ["noted", "translated", "noted", "translated"]
    assert "t2, t1, in this order" in found.notes[1]
    assert found.pipeline.normalize == "zscore"
    alone = made(several({"_target_": "ScaleIntensityd", "keys": "t1"}, join), channels=2)
    assert any("for t1 alone" in note for note in alone.notes)
    assert alone.pipeline.normalize == "none"
    unlike = {**SPACING, "keys": ["t1", "t2"], "mode": ["bilinear", "nearest"]}
    assert any("differ between the images" in note for note in made(several(unlike, join), channels=2).notes)


def test_images_by_another_name_are_images():
    own = [{"_target_": "scripts.Loadd", "keys": "scan"}, {"_target_": "ScaleIntensityd", "keys": "scan"}]
    assert made(own).pipeline.normalize == "minmax"
    other = [{**ARGMAX, "keys": "logits"}, {"_target_": "LabelFilterd", "keys": "logits"}]
    assert any("LabelFilterd" in note for note in made(LOAD, other).notes)
    extra = [*LOAD, {"_target_": "Flipd", "keys": "guidance"}, {"_target_": "Flipd", "keys": "label"}]
    assert [step.what for step in made(extra).steps[2:]] == ["for guidance only", "for label only"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"_target_": "LoadImaged", "keys": "image", "affine_lps_to_ras": False}, "as ITK has them"),
        ({"_target_": "LoadImaged", "keys": "image", "converter": "$lambda x: x.rotate(90)"}, "by code of its own"),
        ({"_target_": "Orientationd", "axcodes": "RAS", "labels": [["R", "L"], ["A", "P"], ["S", "I"]]}, "letters"),
        ({**SPACING, "padding_mode": "zeros"}, "beyond the border"),
        ({**SPACING, "mode": 3}, "other cubic curves"),
        ({**SPACING, "diagonal": True}, "more than one spacing"),
        ({**SPACING, "lazy": True}, "is lazy"),
        ({"_target_": "Resized", "spatial_size": [9, 9, 9], "size_mode": "longest"}, "depends on the image"),
        ({"_target_": "Resized", "spatial_size": [9, 9, 9], "mode": "trilinear", "align_corners": True}, "corners"),
        ({"_target_": "Resized", "spatial_size": [9, 9, 9], "mode": "trilinear", "anti_aliasing": True}, "Gaussian"),
        ({"_target_": "DivisiblePadd", "k": [8, 8, 4]}, "least common"),
        ({"_target_": "DivisiblePadd", "k": 8, "mode": "reflect"}, "else than zeros"),
        ({"_target_": "SpatialPadd", "spatial_size": [8, 8, 8]}, "not the window's"),
        ({"_target_": "CropForegroundd", "source_key": "label"}, "foreground of label"),
        ({"_target_": "CropForegroundd", "margin": 3}, "pads where its margin"),
        ({"_target_": "CropForegroundd", "k_divisible": 8}, "to a multiple"),
        ({"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 9, "b_min": 0, "b_max": 1}, "not clip"),
        ({"_target_": "NormalizeIntensityd", "subtrahend": 1, "divisor": 2, "nonzero": True}, "mixes"),
        ({"_target_": "RepeatChanneld", "repeats": 3}, "repeats a volume's channel"),
        ({"_target_": "CastToTyped", "dtype": "$np.uint8"}, "turns values into uint8"),
    ],
)
def test_settings_that_are_not_microtomes_are_said(step, words):
    found = made([*LOAD, {"keys": "image", **step}])
    assert found.steps[-1].verdict == "noted"
    assert any(words in note for note in found.notes)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([SPACING, {"_target_": "CropForegroundd"}], "crops after Spacing"),
        ([SPACING, {"_target_": "Orientationd", "axcodes": "RAS"}], "resampled or reordered before"),
        ([{**SPACING, "pixdim": 2}, {"_target_": "Orientationd", "axcodes": "RAS"}], "before Orientation"),
        ([{"_target_": "Transposed", "indices": [0, 2, 1, 3]}, SPACING], "does not reorder the spacing"),
        ([SPACING, {"_target_": "Resized", "spatial_size": [9, 9, 9]}], "by Spacing and by Resize, microtome once"),
        ([{"_target_": "DivisiblePadd", "k": 8}, {"_target_": "ScaleIntensityd"}], "comes after padding"),
        ([{"_target_": "NormalizeIntensityd"}, {"_target_": "CropForegroundd"}], "depends on the image"),
        (
            [
                {"_target_": "ScaleIntensityd"},
                {"_target_": "ScaleIntensityRanged", "a_min": 0.2, "a_max": 0.5, "b_min": 0, "b_max": 1, "clip": True},
            ],
            "clips values that have been normalized",
        ),
        ([{"_target_": "NormalizeIntensityd", "nonzero": True}, {"_target_": "ScaleIntensityd"}], "those of exactly 0"),
        (
            [{"_target_": "NormalizeIntensityd", "nonzero": True}, {"_target_": "NormalizeIntensityd"}],
            "passes over zeros",
        ),
        ([{"_target_": "NormalizeIntensityd"}, {"_target_": "ShiftIntensityd", "offset": 1}], "has been normalized"),
    ],
)
def test_an_order_that_is_not_microtomes_is_said(steps, words):
    assert any(words in note for note in made([*LOAD, *({"keys": "image", **step} for step in steps)]).notes)


def test_padding_to_a_multiple_before_windows_is_said():
    pad = {"_target_": "DivisiblePadd", "keys": "image", "k": 8}
    windows = {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": 32}}
    assert "as a whole" in made([*LOAD, pad], config=windows).notes[0]
    resize = {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16, 24]}
    assert made([*LOAD, resize, pad]).notes == ()


def test_a_network_of_slices_gets_them_along_the_first_axis():
    config = {"inferer": {"_target_": "SliceInferer", "roi_size": [64, 32], "spatial_dim": 2}}
    before = [*LOAD, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}, SPACING]
    pipeline = made(before, shape=(64, 32), spatial_shape=[64, 32], config=config).pipeline
    assert (pipeline.spatial_dims, pipeline.slices, pipeline.patch) == (3, 1, (64, 32))
    assert (pipeline.orientation, pipeline.spacing) == ("SRA", (2.0, 1.5, 1.5))
    stored = made(LOAD, shape=(64, 32), spatial_shape=[64, 32], config=config).pipeline
    assert (stored.transpose, stored.orientation) == ((2, 0, 1), None)


@pytest.mark.parametrize(
    ("after", "fields"),
    [
        (
            [{"_target_": "Invertd", "nearest_interp": False}, ARGMAX],
            {"decide": "image", "score_interpolation": "linear"},
        ),
        ([{"_target_": "Invertd"}, ARGMAX], {"decide": "image", "score_interpolation": "nearest"}),
        ([ARGMAX, {"_target_": "Invertd"}], {"decide": "network"}),
    ],
)
def test_labels_are_chosen_where_the_bundle_chooses_them(after, fields):
    found = made([*LOAD, SPACING], after)
    assert {name: getattr(found.pipeline, name) for name in fields} == fields
    assert found.notes == ()


def test_what_becomes_of_results_on_the_way_back_is_said():
    softmax = {"_target_": "Activationsd", "softmax": True}
    back = {"_target_": "Invertd", "nearest_interp": False}
    assert "brings probabilities back" in made([*LOAD, SPACING], [softmax, back, ARGMAX]).notes[0]
    assert made(LOAD, [softmax, back, ARGMAX]).notes == ()
    assert "between label numbers" in made([*LOAD, SPACING], [ARGMAX, back]).notes[0]
    left = made([*LOAD, SPACING], [ARGMAX])
    assert "leaves labels on the network's grid" in left.notes[0]
    assert left.pipeline.decide == "network"


def test_sigmoids_with_a_background_of_their_own_are_said():
    merge = {"_target_": "scripts.own.MergeClassesd", "keys": "pred"}
    found = made(LOAD, [SIGMOID, HALF, merge])
    assert found.pipeline.activation == "softmax"
    assert any("also on that of the background" in note for note in found.notes)
    assert any("MergeClassesd" in note and "own code" in note for note in found.notes)


def test_labels_that_a_bundle_writes_are_regions_or_said():
    where = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    write = {"_target_": "Lambdad", "keys": "pred", "func": where}
    names = {"0": "core", "1": "whole", "2": "enhancing"}
    after = [SIGMOID, HALF, write]
    brats = {"train.json": {"x": [{"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"}]}}
    found = made(LOAD, after, channel_def=names, others=brats)
    assert found.notes == ()
    assert found.pipeline.regions == {"core": (1, 4), "whole": (1, 2, 4), "enhancing": (4,)}
    assert found.pipeline.writing == ((1, 2), (0, 1), (2, 4))
    unknown = made(LOAD, after, channel_def=names)
    assert any("may overlap" in note for note in unknown.notes)
    assert any("4 where channel 2 is" in note for note in unknown.notes)
    odd = {**write, "func": "$lambda x: x.sum(0)"}
    assert any("function of its own" in note for note in made(LOAD, [SIGMOID, HALF, odd]).notes)


def test_one_channel_is_a_foreground():
    assert made(LOAD, [SIGMOID, HALF], channel_def={"0": "a"}).pipeline.classes == ("background", "a")
    silent = made(LOAD, channel_def={"0": "a"})
    assert "does not say what becomes of its one channel" in silent.notes[0]
    raw = made(LOAD, [HALF], channel_def={"0": "a"}).pipeline
    assert (raw.activation, raw.threshold) == ("none", 0.5)
    assert "1 channels, and the metadata name 3" in made(num_channels=1).problem


def test_findings_that_are_decided_one_by_one_may_hold_together():
    facts = {"format": "classes", "spatial_shape": [1, 3]}
    assert made(LOAD, [SIGMOID, HALF], **facts).pipeline.task == "multi-label"
    open_ = made(LOAD, [SIGMOID], **facts)
    assert (open_.pipeline.task, open_.pipeline.activation) == ("classification", "sigmoid")
    assert "--with task=multi-label" in open_.notes[0]
    windows = {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": 32}}
    assert "microtome at the whole of it" in made(LOAD, config=windows, **facts).notes[0]


def test_images_that_are_made_are_in_some_unit():
    found = made(LOAD, [SIGMOID], format="image", channel_def=None, num_channels=1)
    assert (found.pipeline.classes, found.pipeline.activation) == (("image",), "none")
    assert ["through sigmoid" in found.notes[0], "undo_normalize" in found.notes[1]] == [True, True]


def test_references_with_other_labels_are_said():
    train = {
        "train.json": {
            "steps": [
                {"_target_": "MapLabelValued", "keys": "label", "orig_labels": [0, 1, 5], "target_labels": [0, 1, 2]}
            ]
        },
        "evaluate.json": {"steps": [{"_target_": "Lambdad", "keys": ["label"], "func": "$lambda x: x > 0"}]},
    }
    notes = made(others=train).notes
    assert any("MapLabelValue 5→2, in train.json" in note for note in notes)
    assert any("Lambda, in evaluate.json" in note for note in notes)


def test_channels_that_files_must_give_in_order_are_said():
    facts = {"num_channels": 2, "spatial_shape": [96] * 3, "channel_def": {"0": "T1", "1": "T2"}}
    config = {"preprocessing": {"transforms": LOAD}}
    found = translate(
        Declared(config, facts, {"format": "segmentation", "spatial_shape": [96] * 3, "channel_def": NAMES})
    )
    assert any("T1, T2, in this order" in note for note in found.notes)


POOL = [
    *({"_target_": f"{kind}d", "keys": "image"} for kind in (*transforms.TRANSLATED, *HARMLESS, *UNSUPPORTED)),
    *({"_target_": kind} for kind in transforms.TRANSLATED),
    {**SPACING, "pixdim": "$unknown()"},
    {**SPACING, "surprise": 1},
    {"_target_": "RandFlipd", "keys": "image"},
    {"_target_": "scripts.Spacingd", "keys": "image"},
    {"_target_": "@nothing"},
    {"_target_": "NoSuchTransformd", "keys": "label"},
    {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.int16"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 9, "b_min": 1, "b_max": 0, "clip": True},
    "no table",
]


@pytest.mark.parametrize("seed", range(40))
def test_no_step_is_silent(seed):
    chance = random.Random(seed)
    before = [chance.choice(POOL) for _ in range(chance.randrange(1, 8))]
    after = [{"_target_": f"{kind}d", "keys": "pred"} for kind in chance.sample([*outputs.TRANSLATED, *UNSUPPORTED], 4)]
    inferer = {"_target_": chance.choice([*inferers.TRANSLATED, "OwnInferer"]), "roi_size": 32}
    found = made(before, after, config={"inferer": inferer})
    names = [kind_of(item) if isinstance(item, dict) else "?" for item in (*before, inferer, *after)]
    assert sorted(kind_of({"_target_": f".{step.name}"}) for step in found.steps) == sorted(
        name if name != "?" else kind_of({"_target_": ".table"}) for name in names
    )
    for step in found.steps:
        assert step.verdict in ("translated", "harmless", "noted")
        assert step.what
        if step.verdict == "noted":
            assert any(note in step.what or (step.name in note and step.what in note) for note in found.notes)
    if found.pipeline is not None:
        assert Pipeline.from_json(found.pipeline.to_json()) == found.pipeline
        assert replace(found.pipeline) == found.pipeline
    else:
        assert found.problem
