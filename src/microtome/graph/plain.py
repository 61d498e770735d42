"""Modules as `torch.export` wants them: without wrappers, in float32, and with weights that are constants."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from microtome.errors import CaptureError, WeightsError
from microtome.graph.quiet import quiet

# Where wrappers keep the module, by the names of their classes.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "AveragedModel": "module",
}
HALF_LARGEST = 65504.0
MASK_VALUES = 2


def unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return what wrappers hold, in float32, and notes; the module itself where there is nothing to do, else a copy.

    Raises:
        CaptureError: it is TorchScript, or quantized.
        WeightsError: it has no weights yet, or one that float32 cannot hold.
    """
    names: Counter[str] = Counter()
    while (attribute := _wraps(module)) is not None:
        names[type(module).__name__] += 1
        module = getattr(module, attribute)
    _refuse_foreign(module)
    tensors = dict(_tensors(module))
    others = check_float32(tensors, "the network")
    inner = [part for part in module.modules() if _wraps(part) is not None or _is_compiled(part)]
    if inner or _needs_cast(tensors):
        names.update(type(part).__name__ for part in inner if _wraps(part) is not None)
        module = copied(module)
        _unwrap_parts(module)
        _cast(module)
    notes = (f"The module inside of {', '.join(names)} is taken.",) if names else ()
    return module, (*notes, *others)


def with_constant_weights(module: nn.Module) -> nn.Module:
    """Return a module in evaluation mode whose weights are no longer computed from others at each call.

    Weight norm, spectral norm and other parametrizations give in evaluation mode always the same: left in, a network
    would have no weights that could be quantized. The module itself where there are none, else a copy.
    """
    if not any(parametrize.is_parametrized(part) or _norms(part) for part in module.modules()):
        return module
    module = copied(module).eval()  # in training mode spectral norm changes its vectors
    with torch.no_grad(), quiet():
        for part in module.modules():
            if parametrize.is_parametrized(part):
                _fix(part)
            for name, kind in _norms(part).items():
                remove = nn.utils.remove_weight_norm if kind == "WeightNorm" else nn.utils.remove_spectral_norm
                remove(part, name)
    return module


def _fix(part: nn.Module) -> None:
    """Replace parametrized weights by their values; torch's own way changes the class, which the original shares."""
    values = {name: getattr(part, name).detach().clone() for name in part._modules["parametrizations"]._modules}  # type: ignore[union-attr]
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part._modules["parametrizations"]
    for name, value in values.items():
        part.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))


def check_float32(tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Return notes on weights that are in another type than float32, and on what that type did to them.

    Raises:
        WeightsError: float32 cannot hold a weight; the error names it.
    """
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    lost = _lost(tensors)
    others = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32}
    if not others:
        return tuple(lost)
    kinds = Counter(str(t.dtype).removeprefix("torch.") for t in others.values())
    largest = torch.finfo(torch.float32).max
    for name, tensor in others.items():
        if tensor.dtype == torch.float64 and bool((tensor.abs() > largest).logical_and(tensor.isfinite()).any()):
            raise WeightsError(
                f"{where} holds {float(tensor.abs().max()):.3g} in {name}: float32 ends at {largest:.3g}.",
                "Scale the weights, or use an earlier checkpoint: training may have diverged.",
            )
    what = " and ".join(f"{count} in {kind}" for kind, count in kinds.items())
    return (f"Of {len(tensors)} tensors of {where}, {what} were cast to float32.", *lost)


def _lost(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return notes on weights that a number type has cut off at its largest, and on those that float32 takes for 0."""
    notes = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        kind, largest = _narrowest(tensor)
        share = float((tensor.float().abs() == largest).double().mean()) if kind else 0.0
        if share:
            notes.append(
                f"{share:.1%} of {name} sit at exactly {largest:.6g}, the largest number of {kind}: what was beyond it "
                "was cut off before these weights were saved. Use weights that were saved in float32."
            )
        gone = float(((tensor != 0) & (tensor.float() == 0)).double().mean()) if tensor.dtype == torch.float64 else 0.0
        if gone:
            notes.append(f"{gone:.1%} of {name} are so small that they are 0 in float32.")
    return notes


def _narrowest(tensor: Tensor) -> tuple[str, float]:
    """Return the type that may have cut values off: the tensor's own, or float16 for all that it holds; else ''."""
    if tensor.dtype.itemsize == 1 or tensor.dtype == torch.float16:
        return str(tensor.dtype).removeprefix("torch."), torch.finfo(tensor.dtype).max
    top = float(tensor.abs().max())
    once_half = top == HALF_LARGEST and torch.equal(tensor, tensor.half().to(tensor.dtype))
    several = once_half and len(set(tensor.flatten().tolist())) > MASK_VALUES  # a mask has 0 and -65504 only
    return ("float16", HALF_LARGEST) if several else ("", 0.0)


def _refuse_foreign(module: nn.Module) -> None:
    """Refuse modules that are no Python code over float weights."""
    for name, part in module.named_modules():
        where = f"{type(module).__name__}{f' at {name}' if name else ''}"
        if isinstance(part, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} is TorchScript, which torch.export cannot capture.",
                "Give the Python code that builds the network, and its weights as --weights FILE.",
            )
        if ".quantized" in type(part).__module__ and type(part).__module__.startswith("torch."):
            raise CaptureError(
                f"{where} is quantized already ({type(part).__module__}.{type(part).__name__}).",
                "Give the network in float: microtome quantizes it, and compares with it.",
            )
    for name, tensor in _tensors(module):
        if tensor.is_meta:
            raise WeightsError(
                f"the network has no values in {name}, only a shape (device meta).", "Load its weights first."
            )


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers, and other tensors that parts hold, by name; uninitialized ones left out."""
    named: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for path, part in module.named_modules():
        own = {f"{path}.{key}".lstrip("."): value for key, value in vars(part).items() if isinstance(value, Tensor)}
        named += [(name, value) for name, value in own.items() if name.rpartition(".")[2] not in _norms(part)]
    return [(name, tensor) for name, tensor in named if not nn.parameter.is_lazy(tensor)]


def _needs_cast(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors.values())


def _cast(module: nn.Module) -> None:
    """Turn all floating-point tensors of a module into float32, in place."""
    module.float()
    for part in module.modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(part)[key] = value.float()


def copied(module: nn.Module) -> nn.Module:
    """Return an independent copy; weights that a norm of the old kind computed are in the way of one, and go by."""
    for part in module.modules():
        for name in _norms(part):
            if isinstance(weight := vars(part).get(name), Tensor):
                vars(part)[name] = weight.detach()
    with quiet():
        return copy.deepcopy(module)


def _unwrap_parts(module: nn.Module) -> None:
    """Put what wrapped parts hold in their place, and undo `Module.compile`, in place."""
    for part in module.modules():
        for name, child in part.named_children():
            setattr(part, name, _innermost(child))
    for part in module.modules():
        if _is_compiled(part):
            part._compiled_call_impl = None


def _innermost(module: nn.Module) -> nn.Module:
    while (attribute := _wraps(module)) is not None:
        module = getattr(module, attribute)
    return module


def _wraps(module: nn.Module) -> str | None:
    """Return the attribute in which a wrapper keeps its module; None if it is none."""
    found = next((WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in WRAPPERS), None)
    return found if found is not None and isinstance(getattr(module, found, None), nn.Module) else None


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _norms(module: nn.Module) -> dict[str, str]:
    """Return the weights that norms of the old kind (hooks) compute, by name, with the kind of norm."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if hasattr(hook, "name")]
    kinds = {hook.name: type(hook).__name__ for hook in hooks}
    return {name: kind for name, kind in kinds.items() if kind in ("WeightNorm", "SpectralNorm")}
