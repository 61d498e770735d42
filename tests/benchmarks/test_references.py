"""The reference networks: published weights fit strictly and do what their authors say; the training loop trains."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from microtome.clinical.overlap import dice
from microtome.graph.program import export_graph, network_from_export
from microtome.medical.pipeline import Pipeline
from microtome.medical.read import read_image, read_mask
from microtome.types import Port
from plain import segment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of benchmarks/, under a name that no other test uses."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


networks = load("networks")
training = load("training")


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_little_w_net_segments_retinal_vessels(data: Path) -> None:
    module = networks.load_published(networks.WNet(), data / "networks" / "lwnet_wnet_drive.safetensors")
    assert parameters(module) == 68_482
    pipeline = Pipeline(
        "segmentation",
        ("background", "vessel"),
        channels=3,
        size=(512, 512),
        normalize="unit",
        activation="sigmoid",
        threshold=0.4196,
    )
    values = []
    for name in ("Image_05L", "Image_10R"):
        image = read_image([data / "retina" / f"{name}.jpg"])
        reference = read_mask(data / "retina" / f"{name}_1stHO.png", image)
        values.append(dice(segment(training.predictor(module), image, pipeline), reference))
    # Uncropped, the mean over all 28 is 0.747; single images lie between 0.65 and 0.81.
    assert 0.70 < np.mean(values) < 0.80


@pytest.mark.parametrize(
    ("name", "classes", "width", "count"), [("meshnet_18cls", 18, 21, 96_408), ("meshnet_gwm", 3, 5, 5_598)]
)
def test_meshnet_takes_its_published_weights(data: Path, name: str, classes: int, width: int, count: int) -> None:
    module = networks.load_published(networks.MeshNet(classes, width), data / "networks" / f"{name}.safetensors")
    assert parameters(module) == count


def test_meshnet_tells_white_matter_from_grey(data: Path) -> None:
    module = networks.load_published(networks.MeshNet(3, 5), data / "networks" / "meshnet_gwm.safetensors")
    head = np.asarray(nibabel.load(data / "brain" / "t1_crop.nii.gz").dataobj, np.float32)
    head = (head - head.min()) / (head.max() - head.min())
    middle = np.ascontiguousarray(head[80:176, 80:176, 80:176])
    labels = training.predictor(module)(middle[None, None]).argmax(1)[0]
    rest, white, grey = (middle[labels == k].mean() for k in range(3))
    assert white > grey > rest  # T1 contrast
    assert min((labels == 1).mean(), (labels == 2).mean()) > 0.1


@pytest.mark.parametrize(("picture", "name", "expected"), [("china.jpg", "palace", 699), ("flower.jpg", "daisy", 986)])
def test_mobilenet_recognizes_photographs(data: Path, picture: str, name: str, expected: int) -> None:
    module = networks.load_published(networks.MobileNetV2(), data / "networks" / "mobilenet_v2_imagenet_tf2_int8.npz")
    assert parameters(module) == 3_489_097
    photo = Image.fromarray(load_sample_image(picture)).crop((106, 0, 533, 427)).resize((224, 224), Image.BILINEAR)
    pixels = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    assert training.predictor(module)(pixels).argmax() == expected, name


def test_published_weights_of_another_network_are_refused(data: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        networks.load_published(networks.MeshNet(18, 5), data / "networks" / "meshnet_18cls.safetensors")


def test_vit_is_captured_with_plain_logits() -> None:
    pytest.importorskip("monai")
    torch.manual_seed(0)
    module = networks.vit(1, 2, (32, 32), width=64, layers=1).eval()
    port = Port("input", (1, 32, 32), (True, False, False))
    network = network_from_export(export_graph(module, [port]))
    assert network.notes == ()  # no output was left out
    x = torch.randn(3, 1, 32, 32)
    assert network(x).shape == (3, 2)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


def test_swin_unetr_scores_every_voxel_and_has_gradients() -> None:
    pytest.importorskip("monai")
    torch.manual_seed(0)
    module = networks.swin_unetr(1, 2, depths=(1, 1, 1, 1))  # its capture is slow: references.py does it
    scores = module(torch.randn(1, 1, 32, 32, 32))
    assert scores.shape == (1, 2, 32, 32, 32)
    scores.square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)
    assert module.swinViT.layers1[0].blocks[0].attn.qkv.weight.grad.abs().max() > 0


def squares(count: int = 24, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright square each, and its mask."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for mask, (top, left) in zip(masks, torch.randint(0, size - 6, (count, 2), generator=generator), strict=True):
        mask[top : top + 6, left : left + 6] = 1
    return masks[:, None] + 0.3 * torch.randn((count, 1, size, size), generator=generator), masks


def test_drawing_without_augmentation_returns_what_is_stored() -> None:
    images, masks = squares()
    stage = training.Stage(1, 2, (16, 16), (1.0, 1.0))
    x, y = training.draw(
        training.Examples(images, masks, torch.ones(24)),
        torch.tensor([3, 5]),
        stage,
        training.Augmentation(),
        torch.Generator(),
    )
    torch.testing.assert_close(x, images[[3, 5]], rtol=0, atol=1e-4)  # interpolation weights are 1 ± float32 rounding
    assert torch.equal(y, masks[[3, 5]].long())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_flip_is_along_its_axis(axis: int) -> None:
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    augmentation = training.Augmentation(flips=(axis,))
    thetas = [training.random_affine(8, (1.0, 1.0), augmentation, torch.Generator().manual_seed(0))]
    grid = torch.nn.functional.affine_grid(thetas[0], [8, 1, 2, 3], align_corners=False)
    drawn = torch.nn.functional.grid_sample(image.expand(8, 1, 2, 3), grid, align_corners=False)
    flipped = image.flip(2 + axis)
    seen = {bool(torch.allclose(one, flipped[0], atol=1e-4)) for one in drawn}
    assert seen == {True, False}
    assert all(torch.allclose(one, flipped[0], atol=1e-4) or torch.allclose(one, image[0], atol=1e-4) for one in drawn)


@pytest.mark.parametrize("limit", [600.0, 0.5])
def test_training_learns_and_keeps_its_time_limit(limit: float, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = squares()
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    recipe = training.Recipe(
        (training.Stage(100 if limit > 1 else 100_000, 8, (16, 16), (1.0, 1.0)),),
        training.dice_cross_entropy,
        training.Augmentation(flips=(0, 1), contrast=0.1),
        rate=1e-2,
        limit=limit,
    )
    training.train(module, training.Examples(images, masks, torch.ones(24)), recipe)
    prediction = module(images).argmax(1).to(torch.uint8)
    assert dice(prediction.numpy(), masks.numpy()) > 0.8
    assert ("was slow" in capsys.readouterr().out) == (limit < 1)
