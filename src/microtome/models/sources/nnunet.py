"""Results folders of nnU-Net v2: network, weights, pipeline, folds and splits, without nnU-Net's code."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MissingExtraError, ModelError, OptionError, ReadError, WeightsError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted, captured
from microtome.models.nnunet.folder import Folder, cleanup_of, find_folder, is_results, read_folder, trained_names
from microtome.models.nnunet.plans import Plans, read_plans

if TYPE_CHECKING:
    from torch import Tensor, nn

    from microtome.medical.pipeline import Pipeline
    from microtome.models.base import Given

NAME = "nnunet"
LOOKS_LIKE = "an nnU-Net results folder, a fold or a checkpoint in it"
OWN = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
KNOWN = {
    *("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "conv_bias"),
    *("n_blocks_per_stage", "n_conv_per_stage_decoder", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs"),
    *("nonlin", "nonlin_kwargs", "nonlin_first", "stem_channels", "deep_supervision"),
}
PACKAGE = "dynamic_network_architectures"
# Each tensor is in a checkpoint several times, by other names.
TWICE = ("all_modules.", "decoder.encoder.")
# Trainers of nnU-Net that train otherwise, and take the network that the plans describe.
TRAINERS = (
    *("nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDAOrd0", "nnUNetTrainerNoDA", "nnUNetTrainerNoMirroring"),
    *("nnUNetTrainer_noDummy2DDA", "nnUNetTrainerAdam", "nnUNetTrainerAdan", "nnUNetTrainerCosAnneal"),
    *("nnUNetTrainerDice", "nnUNetTrainerCELoss", "nnUNetTrainerTopk", "nnUNetTrainerNoDeepSupervision"),
    *("nnUNetTrainerBN", "nnUNetTrainer_warmup", "nnUNetTrainer_probabilisticOversampling", "nnUNetTrainerVanilla"),
)
OWN_NETWORK = "Give its network as file.py:factory, with --weights CHECKPOINT and --pipeline."


def matches(source: Given) -> bool:
    """Whether it is such a folder, or a checkpoint in one."""
    return is_results(Path(str(source)))


@dataclass(frozen=True)
class Read:
    """What a folder holds.

    Attributes:
        module: the network, or the mean of those of several folds.
        shape: (C, *S) of its windows.
        pipeline: the one that is wanted, or the plans' own.
        title: data set and configuration.
        files: what was read.
        notes: what the user should know.
        trained_on: names of the cases that it was trained on; None if nothing says it.
    """

    module: nn.Module
    shape: tuple[int, ...]
    pipeline: Pipeline
    title: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    trained_on: tuple[str, ...] | None


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read a folder and capture the network of its folds."""
    found = read_results(source, wanted)
    shape = wanted.input_shape or found.shape
    loaded = captured(found.module, None, shape, replace(wanted, pipeline=found.pipeline))
    notes = (*found.notes, *loaded.notes)
    return replace(loaded, title=found.title, files=found.files, notes=notes, trained_on=found.trained_on)


def read_results(source: Given, wanted: Wanted) -> Read:
    """Read a folder, and build its network."""
    if wanted.weights is not None:
        raise OptionError(f"{source} has its own weights.", "Leave --weights out, or give one of its checkpoints.")
    folder = find_folder(Path(str(source)), wanted.part)
    plans_json, dataset = read_folder(folder)
    checkpoints = [_checkpoint(path) for path in folder.checkpoints]
    plans = read_plans(plans_json, dataset, _configuration(checkpoints[0], folder))
    trainer = str(checkpoints[0].get("trainer_name", folder.path.name.split("__")[0]))
    members = [
        _member(plans, checkpoint["network_weights"], path, trainer)
        for checkpoint, path in zip(checkpoints, folder.checkpoints, strict=True)
    ]
    pipeline, files = wanted.pipeline, folder.checkpoints
    more: tuple[str, ...] = ()
    if pipeline is None:
        pipeline, more, found = _pipeline(plans, checkpoints[0], folder)
        files += found
    module = members[0] if len(members) == 1 else _mean(members)
    names = trained_names(folder)
    return Read(
        module.eval(),
        (len(plans.channels), *plans.patch),
        pipeline,
        f"{plans.plans.get('dataset_name', folder.path.parent.name)} {plans.configuration}",
        (*files, folder.path / "plans.json", folder.path / "dataset.json"),
        (*folder.notes, *_trainer_note(trainer), *more),
        names[0] if names else None,
    )


def _checkpoint(path: Path) -> Mapping[str, Any]:
    from microtome.models.checkpoints import read

    content = read(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("network_weights"), Mapping):
        raise WeightsError(f"{path} is no checkpoint of nnU-Net: it holds no 'network_weights'.", "Copy it again.")
    return content


def _configuration(checkpoint: Mapping[str, Any], folder: Folder) -> str:
    arguments = checkpoint.get("init_args")
    found = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    return str(found or folder.configuration)


def _pipeline(
    plans: Plans, checkpoint: Mapping[str, Any], folder: Folder
) -> tuple[Pipeline, tuple[str, ...], tuple[Path, ...]]:
    """Return the pipeline, notes on it, and the files beside the plans that it rests on."""
    from microtome.models.nnunet.pipeline import PREVIOUS, pipeline_of

    steps, file = cleanup_of(folder, plans.labels)
    mirror = tuple(int(axis) for axis in checkpoint.get("inference_allowed_mirroring_axes") or ())
    pipeline = pipeline_of(plans, mirror, steps)
    notes: tuple[str, ...] = ()
    if plans.previous:
        notes = (
            f"The network takes the label maps of {plans.previous} beside the image: name their folder with --input "
            f"{PREVIOUS}=FOLDER.",
        )
    return pipeline, notes, (file,) if file else ()


def _trainer_note(trainer: str) -> tuple[str, ...]:
    stem = trainer.split("_", maxsplit=1)[0] if trainer.endswith(("epochs", "epoch", "NoMirroring")) else trainer
    if stem in TRAINERS:
        return ()
    return (
        f"The trainer {trainer} is not known: its network is taken for the one that the plans describe. If it builds "
        "another one of the same weights, such as with another activation, predictions differ: compare some of them.",
    )


def _member(plans: Plans, state: Mapping[str, Tensor], path: Path, trainer: str) -> nn.Module:
    """Build the network that the plans describe, with the weights of one fold."""
    from microtome.models.weights import apply_state

    words = dict(plans.entries["architecture"]["arch_kwargs"])
    title = str(plans.entries["architecture"]["network_class_name"]).rpartition(".")[2]
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in TWICE)}
    if title in OWN and set(words) <= KNOWN:
        module, state = _own(plans, title, words, batch=any("running_mean" in name for name in own)), own
    else:
        module = _foreign(plans, words)
    try:
        apply_state(module, state, path)
    except WeightsError as error:
        raise WeightsError(
            f"The weights in {path} are not those of the network that the plans describe ({title}); the trainer "
            f"{trainer} may build its own. {error.problem}",
            OWN_NETWORK,
        ) from error
    return module


def _own(plans: Plans, title: str, words: dict[str, Any], *, batch: bool) -> nn.Module:
    from microtome.models.nnunet.networks import OPERATORS, UNet

    for key in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        name = words.get(key)
        if name is None:
            continue
        operator = str(name).rpartition(".")[2]
        if batch and key == "norm_op":  # nnUNetTrainerBN
            operator = operator.replace("InstanceNorm", "BatchNorm")
        if operator not in OPERATORS:
            raise ModelError(f"The plans' {key} {name} is not known.", OWN_NETWORK)
        words[key] = OPERATORS[operator]
    try:
        return UNet(plans.inputs, plans.heads, words, title=title)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReadError(f"The plans describe no {title}: {first_line(error)}.", OWN_NETWORK) from error


def _foreign(plans: Plans, words: dict[str, Any]) -> nn.Module:
    """Build a network of the package that nnU-Net takes its networks from."""
    architecture = plans.entries["architecture"]
    place, _, title = str(architecture["network_class_name"]).rpartition(".")
    if place.partition(".")[0] != PACKAGE:
        raise ModelError(f"The plans' network {place}.{title} is not one of nnU-Net's own.", OWN_NETWORK)
    try:
        with quiet():
            kind = getattr(importlib.import_module(place), title)
    except ImportError as error:
        raise MissingExtraError(f"{title} networks of nnU-Net", "nnunet") from error
    except AttributeError as error:
        raise ModelError(f"{place} has no {title}.", f"Install the {PACKAGE} that it was trained with.") from error
    for key in architecture.get("_kw_requires_import", ()):
        if words.get(key) is not None:
            words[key] = _imported(str(words[key]))
    try:
        made: nn.Module = kind(input_channels=plans.inputs, num_classes=plans.heads, **words)
    except Exception as error:  # another version's keywords
        raise ModelError(f"{title} cannot be built: {first_line(error)}.", OWN_NETWORK) from error
    return made


def _imported(name: str) -> Any:
    """An operator of PyTorch or of that package, by its name."""
    place, _, operator = name.rpartition(".")
    if place.partition(".")[0] not in ("torch", PACKAGE):
        raise ModelError(f"The plans name an operator of another package, {name}.", OWN_NETWORK)
    try:
        return getattr(importlib.import_module(place), operator)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"There is no {name}.", OWN_NETWORK) from error


def _mean(members: list[nn.Module]) -> nn.Module:
    from microtome.models.nnunet.networks import Mean

    return Mean(members)
