"""Every transform that is translated, judged by MONAI: its own transforms beside our Pipeline, on the same arrays."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monai.transforms", reason="MONAI is not installed")

import nibabel
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image as Picture
from scipy import ndimage

from microtome.graph.quiet import quiet
from microtome.medical.cleanup import cleaned
from microtome.medical.prepare import prepare
from microtome.medical.read import read_image
from microtome.medical.stream import segment_streamed
from microtome.models.bundles import inferers, outputs, transforms
from microtome.models.bundles.declared import Declared, kind_of
from microtome.models.bundles.known import HARMLESS, UNSUPPORTED
from microtome.models.bundles.translate import translate
from microtome.types import Image

CLOSE = 1e-4  # of the range of values: float32 in another order; a wrong grid or statistic is off by hundredths
METADATA = {"format": "segmentation", "channel_def": {"0": "background", "1": "a"}}


def named(kind, **settings):
    return {"_target_": f"{kind}d", "keys": "image", **settings}


def translated(steps, image, after=(), inferer=None, labels=2):
    dims = image.array.ndim - 1 if inferer is None or inferer["_target_"] != "SliceInferer" else 2
    shape = {"num_channels": image.array.shape[0], "spatial_shape": ["*"] * dims}
    names = {"channel_def": {str(n): "background" if n == 0 else f"structure {n}" for n in range(labels)}}
    config = {"preprocessing": {"_target_": "Compose", "transforms": list(steps)}}
    config |= {"postprocessing": {"transforms": list(after)}} if after else {}
    config |= {"inferer": inferer} if inferer else {}
    return translate(Declared(config, shape, {**METADATA, **names, "spatial_shape": ["*"] * dims}))


def theirs(steps, image):
    """What MONAI makes of an image, given as an array with its affine."""
    parser = ConfigParser({"steps": {"_target_": "Compose", "transforms": list(steps)}})
    affine = np.eye(4) if image.affine is None else image.affine
    given = MetaTensor(torch.tensor(image.array, dtype=torch.float32), affine=torch.tensor(affine))
    return parser.get_parsed_content("steps")({"image": given})["image"].numpy()


def read_by_monai(steps, file):
    """The same, with MONAI's own reading of the file."""
    with quiet():  # its readers complain of decoders that are not there
        made = ConfigParser({"steps": {"_target_": "Compose", "transforms": steps}}).get_parsed_content("steps")
    return made({"image": str(file)})["image"].numpy()


def volume(channels=1, seed=0):
    rng = np.random.default_rng(seed)
    array = rng.normal(40, 60, (channels, 11, 14, 9)) * np.arange(1, channels + 1)[:, None, None, None]
    array[:, :2] = array[:, :, -3:] = array[..., :1] = 0
    array[:, 4:6, 3:9, 2:5] += 300
    affine = np.array([[0, -0.9, 0, 5], [1.1, 0, 0, -7], [0, 0, -2.5, 3], [0, 0, 0, 1.0]])
    return Image(array.astype(np.float32), affine)


def picture(channels=3, seed=1):
    return Image(np.random.default_rng(seed).integers(0, 256, (channels, 23, 31)).astype(np.float32))


WINDOW = named("ScaleIntensityRange", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)
CASES = {
    "Orientation": [named("Orientation", axcodes="RAS", labels=None)],
    "Orientation canonical": [named("Orientation", as_closest_canonical=True, labels=None)],
    "Transpose": [named("Transpose", indices=[0, 3, 1, 2])],
    "Spacing": [named("Orientation", axcodes="PLI", labels=None), named("Spacing", pixdim=[1.5, 1.0, 2.0])],
    "Spacing of one axis": [named("Spacing", pixdim=[-1, -1, 1.3])],
    "Spacing alike": [named("Spacing", pixdim=2)],
    "Resize": [named("Resize", spatial_size=[8, 20, 9], mode="trilinear")],
    "Resize by area": [named("Resize", spatial_size=[8, 20, 9])],
    "Resize to nearest": [named("Resize", spatial_size=[7, 6, 10], mode="nearest-exact")],
    "DivisiblePad": [named("DivisiblePad", k=8)],
    "DivisiblePad at the end": [named("DivisiblePad", k=[4, 4, 4], method="end")],
    "CropForeground": [named("CropForeground", source_key="image")],
    "CropForeground above": [named("CropForeground", source_key="image", select_fn="$lambda x: x > 250")],
    "CropForeground with margin": [named("CropForeground", source_key="image", margin=2, allow_smaller=True)],
    "CropForeground after window": [
        WINDOW,
        named("CropForeground", source_key="image", select_fn="$lambda x: x > 0.3"),
    ],
    "ScaleIntensityRange": [WINDOW],
    "ScaleIntensityRange to -1": [named("ScaleIntensityRange", a_min=0, a_max=255, b_min=-1, b_max=1)],
    "ScaleIntensityRange alone": [named("ScaleIntensityRange", a_min=-100, a_max=200)],
    "ScaleIntensityRange of a range": [
        named("ScaleIntensity"),
        named("ScaleIntensityRange", a_min=0, a_max=1, b_min=-1, b_max=1, clip=True),
    ],
    "ScaleIntensity": [named("ScaleIntensity")],
    "ScaleIntensity to -1": [named("ScaleIntensity", minv=-1.0, maxv=3.0, channel_wise=True)],
    "ScaleIntensity by a factor": [named("ScaleIntensity", minv=None, maxv=None, factor=0.5)],
    "ScaleIntensityRangePercentiles": [
        named("ScaleIntensityRangePercentiles", lower=2, upper=98, b_min=0, b_max=1, clip=True)
    ],
    "ScaleIntensityRangePercentiles relative": [
        named(
            "ScaleIntensityRangePercentiles",
            **{"lower": 10, "upper": 80, "b_min": -1, "b_max": 2, "clip": True, "relative": True},
            channel_wise=True,
        )
    ],
    "ClipIntensityPercentiles": [named("ClipIntensityPercentiles", lower=5, upper=95, channel_wise=True)],
    "NormalizeIntensity": [named("NormalizeIntensity")],
    "NormalizeIntensity of what is not 0": [named("NormalizeIntensity", nonzero="True", channel_wise="True")],
    "NormalizeIntensity by numbers": [named("NormalizeIntensity", subtrahend=30, divisor=12.5)],
    "ShiftIntensity": [named("ShiftIntensity", offset=12.5)],
    "range, then deviation": [named("ScaleIntensity", minv=0, maxv=1), named("NormalizeIntensity")],
    "window, then deviation": [WINDOW, named("NormalizeIntensity")],
    "window, then numbers": [WINDOW, named("NormalizeIntensity", subtrahend=0.45, divisor=0.22)],
    "window, shift, spacing": [WINDOW, named("ShiftIntensity", offset=-0.5), named("Spacing", pixdim=[1.5, 1.0, 2.0])],
    "deviation before spacing": [named("NormalizeIntensity"), named("Spacing", pixdim=[1.5, 1.0, 2.0])],
    "numbers before spacing": [named("ShiftIntensity", offset=9), named("Spacing", pixdim=[1.5, 1, 2]), WINDOW],
    "two ranges": [
        named("ScaleIntensity", channel_wise=True),
        named("ScaleIntensityRangePercentiles", lower=1, upper=99, b_min=0, b_max=1, clip=True, channel_wise=True),
    ],
}
ELSEWHERE = {"LoadImage", "SpatialPad", "RepeatChannel", "ConcatItems"}  # judged below


def assert_agrees(steps, image):
    made = translated(steps, image)
    assert made.pipeline is not None
    assert [step.verdict for step in made.steps] == ["translated"] * len(made.steps)
    ours, expected = prepare(image, made.pipeline).array, theirs(steps, image)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= CLOSE * np.ptp(expected)
    return made.pipeline


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_networks_input_is_that_of_monai(name, channels):
    assert_agrees(CASES[name], volume(channels))


@pytest.mark.parametrize(
    "steps",
    [
        [named("Resize", spatial_size=[24, 17], mode=["bilinear"], keys=["image"]), named("ScaleIntensity")],
        [named("ScaleIntensity", minv=0.0, maxv=1.0), named("Resize", spatial_size=[12, 12])],
        [named("NormalizeIntensity", subtrahend=[99, 120, 80], divisor=[50, 60, 70.0], channel_wise=True)],
        [
            named("ScaleIntensityRange", a_min=0, a_max=255, b_min=0, b_max=1, clip=True),
            named("NormalizeIntensity", subtrahend=[0.4, 0.5, 0.6], divisor=[0.2, 0.3, 0.2], channel_wise=True),
        ],
    ],
)
def test_pictures_too(steps):
    assert_agrees(steps, picture())


def test_every_translated_transform_is_judged():
    judged = {kind_of(step) for steps in CASES.values() for step in steps}
    assert judged | ELSEWHERE == set(transforms.TRANSLATED)


def test_the_tables_are_apart():
    tables = [set(transforms.TRANSLATED) | set(outputs.TRANSLATED), set(HARMLESS), set(UNSUPPORTED)]
    for one, other in itertools.combinations(tables, 2):
        assert not one & other


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_read_as_monai_reads_them(tmp_path: Path, mode, suffix):
    file = tmp_path / f"picture.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33, 3) if mode == "RGB" else (20, 33)).astype(np.uint8)
    Picture.fromarray(pixels).save(file)
    steps = [named("LoadImage"), named("EnsureChannelFirst"), named("Resize", spatial_size=[16, 24], mode="bilinear")]
    image = read_image([file])
    made = translated(steps, image)
    assert (made.pipeline.transpose, made.notes) == ((1, 0), ())
    expected = read_by_monai(steps, file)
    ours = prepare(image, made.pipeline).array
    assert ours.shape == expected.shape == (len(mode), 16, 24)
    assert np.abs(ours - expected).max() <= CLOSE * 255
    two = (1, 2, 1, 1)
    back = segment_streamed(
        lambda given: (np.tile(x[:, :1], two) for x in given), prepare(image, made.pipeline), made.pipeline
    )
    assert back.shape == (20, 33)


def test_volumes_are_read_as_monai_reads_them(tmp_path: Path):
    image = volume()
    file = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.array[0], image.affine), file)
    steps = [named("LoadImage"), named("EnsureChannelFirst"), *CASES["Spacing"], WINDOW, named("EnsureType")]
    made = translated(steps, image)
    expected = read_by_monai(steps, file)
    ours = prepare(read_image([file]), made.pipeline).array
    assert np.abs(ours - expected).max() <= CLOSE


def network(x):
    """Channels that depend on the place within a window, so that weights and windows show."""
    x = torch.as_tensor(x)
    place = torch.linspace(-1, 1, x.shape[-1]) + torch.linspace(0, 1, x.shape[-2])[:, None]
    return torch.cat([x[:, :1], x[:, :1] * place + 0.2], dim=1)


INFERERS = [
    {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8]},
    {"_target_": "SlidingWindowInferer", "roi_size": [6, 20, 4], "overlap": 0.6},
    {"_target_": "SlidingWindowInferer", "roi_size": 5, "overlap": 0.5, "mode": "gaussian", "sigma_scale": 0.3},
    *({"_target_": "SliceInferer", "roi_size": [8, 9], "spatial_dim": axis, "overlap": 0.5} for axis in (0, 1, 2)),
    {"_target_": "SimpleInferer"},
]


@pytest.mark.parametrize("inferer", INFERERS, ids=lambda inferer: inferer["_target_"])
def test_windows_stand_and_blend_as_in_monai(inferer):
    image = volume()
    made = translated([named("ScaleIntensity")], image, inferer=inferer)
    assert made.notes == ()
    given = torch.tensor(theirs([named("ScaleIntensity")], image))[None]
    scores = ConfigParser({"inferer": inferer}).get_parsed_content("inferer")(given, network)
    expected = scores.argmax(1)[0].numpy()
    prepared = prepare(image, made.pipeline)
    ours = segment_streamed(lambda inputs: (network(x).numpy() for x in inputs), prepared, made.pipeline)
    certain = np.abs(np.diff(scores[0].numpy(), axis=0)[0]) > CLOSE
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(ours[certain], expected[certain])


def blobs(labels=3):
    rng = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(rng.normal(size=(labels, 18, 20, 16)), (0, 1.2, 1.2, 1.2))
    return np.concatenate([np.full((1, *smooth.shape[1:]), 0.2), smooth]).argmax(0).astype(np.uint8)


AFTER = [named("AsDiscrete", keys="pred", argmax=True)]


@pytest.mark.filterwarnings("ignore:Parameter `min_size` is deprecated:FutureWarning")  # MONAI's own call
@pytest.mark.parametrize(
    ("step", "labels"),
    [
        (named("KeepLargestConnectedComponent", keys="pred"), 3),
        (named("KeepLargestConnectedComponent", keys="pred", applied_labels=[1, 3], connectivity=1), 3),
        (named("KeepLargestConnectedComponent", keys="pred", independent=False), 3),
        (named("RemoveSmallObjects", keys="pred", min_size=12), 1),
        (named("RemoveSmallObjects", keys="pred", min_size=12, connectivity=3), 1),
        (named("RemoveSmallObjects", keys="pred", min_size=30, independent_channels=False), 3),
        (named("FillHoles", keys="pred", connectivity=1), 1),
    ],
)
def test_labels_are_cleaned_as_in_monai(step, labels):
    pytest.importorskip("skimage", reason="scikit-image is not installed, which MONAI asks for")
    image = volume()
    made = translated([named("ScaleIntensity")], image, after=[*AFTER, step], labels=labels + 1)
    given = blobs(labels)
    if "FillHoles" in step["_target_"]:
        given[6:12, 6:12, 6:12] = 1
        given[8:10, 8:10, 8:10] = 0
    parser = ConfigParser({"step": step})
    expected = parser.get_parsed_content("step")({"pred": torch.tensor(given[None].astype(np.int32))})["pred"].numpy()
    assert (expected[0] != given).any()
    np.testing.assert_array_equal(cleaned(given, made.pipeline.cleanup), expected[0])


def test_every_inferer_is_judged():
    assert {inferer["_target_"] for inferer in INFERERS} == set(inferers.TRANSLATED) - {"SlidingWindowInfererAdapt"}
