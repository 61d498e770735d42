"""A graph of steps as a module: each step runs PyTorch's own operators, so that torch.export captures plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import MicrotomeError, ModelError
from microtome.models.foreign.names import identifier, readable
from microtome.models.foreign.operators import TABLE, known_sizes
from microtome.models.foreign.steps import Graph, Step, told
from microtome.models.foreign.values import (
    Array,
    Constant,
    Grid,
    Integers,
    Turned,
    Value,
    is_known,
    numbers,
    turned,
    whole,
)

WAY_OUT = "Give the network as PyTorch code (file.py:factory), or export it again without that operator."


class Graphed(nn.Module):
    """Runs a graph: (N, C, *S) → a dict of its outputs by name.

    Where a file's batch is fixed to one, sizes in it are those of a batch of one; `any_batch` scales them with the
    batch, which has to be checked.
    """

    def __init__(self, graph: Graph, *, last_in: Sequence[str] = (), last_out: Sequence[str] = ()) -> None:
        """Keep the graph.

        Args:
            graph: what to run.
            last_in: inputs whose channels are the last axis in the file; the module takes them first.
            last_out: outputs, likewise.
        """
        super().__init__()
        self.graph = graph
        self.last_in, self.last_out = frozenset(last_in), frozenset(last_out)
        self.any_batch = True
        self.constants: dict[tuple[str, str], str] = {}  # (constant, what was made of it) → the parameter's name
        self.readable = readable(graph)

    def forward(self, *args: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Run all steps."""
        given = dict(zip(self.graph.inputs, args, strict=False)) | {
            n: named[k] for k, n in self.names.items() if k in named
        }
        batch = next(iter(given.values())).shape[0]
        if not self.any_batch and batch != 1:
            raise ModelError("the file's batch is one.")
        values: dict[str, Value] = dict(self.graph.constants)
        for name, x in given.items():
            values[name] = turned(x, [0, *range(2, x.ndim), 1]) if name in self.last_in else x
        for step in self.graph.steps:
            try:
                made = self._run(step, values, batch)
            except MicrotomeError:
                raise
            except Exception as error:
                raise ModelError(
                    f"the operator {step.op} (node {step.name!r}) cannot be carried out: {told(error)}.",
                    "Give the input shape that the network was exported with: --input-shape C,H,W or C,D,H,W.",
                ) from error
            values.update(zip(step.outputs, made, strict=False))
        return {key: self._output(name, values) for key, name in self.out_names.items()}

    @property
    def names(self) -> dict[str, str]:
        """The inputs by names that Python takes."""
        return {identifier(name): name for name in self.graph.inputs}

    @property
    def out_names(self) -> dict[str, str]:
        """The outputs by the names that they get."""
        return {identifier(name): name for name in self.graph.outputs}

    def _run(self, step: Step, values: Mapping[str, Value], batch: Any) -> Sequence[Value]:
        run = Run(self, step, [values[name] if name else None for name in step.inputs], batch)
        if all(value is None or is_known(value) for value in run.values) and step.op in known_sizes.TABLE:
            return [known_sizes.TABLE[step.op](run)]
        if step.op not in TABLE:
            raise unknown([step])
        made = TABLE[step.op](run)
        return made if isinstance(made, list) else [made]

    def _output(self, name: str, values: Mapping[str, Value]) -> Tensor:
        value = values[name]
        if isinstance(value, Integers):
            raise ModelError(
                f"the output {name!r} is integers on a grid.", "Export it with floats: add DequantizeLinear."
            )
        if is_known(value):
            return torch.from_numpy(np.array(numbers(value)))
        assert isinstance(value, Tensor | Turned)
        dims = len(value.order) if isinstance(value, Turned) else value.ndim
        if name in self.last_out and dims > 2:
            value = turned(value, [0, dims - 1, *range(1, dims - 1)])
        return value.plain() if isinstance(value, Turned) else value

    def parameter(self, value: Constant, what: str = "", make: Callable[[Constant], Constant] | None = None) -> Tensor:
        """Return a constant as a parameter or, where it is no floats, a buffer; on its grid, if it has one.

        The first run, before capture, makes it; those after it find it.
        """
        key = (value.name, what)
        if key not in self.constants:
            made = make(value) if make else value
            name = self._free(self.readable.get(value.name) or identifier(value.name, "."))
            self._register(name, made.array, weight=what != "buffer")
            if made.grid is not None and made.grid.axis is not None:
                self._register(f"{name}_scale", made.grid.scale, weight=False)
                self._register(f"{name}_zero_point", made.grid.zero_point, weight=False)
            self.constants[key] = name
            self.grids[key] = made.grid
        name = self.constants[key]
        tensor, grid = self._tensor(name), self.grids[key]
        if grid is None:
            return tensor
        if grid.axis is None:
            return on_grid(tensor, grid)
        scale, zero = self._tensor(f"{name}_scale"), self._tensor(f"{name}_zero_point")
        return torch.fake_quantize_per_channel_affine(tensor, scale, zero, grid.axis, grid.qmin, grid.qmax)

    @property
    def grids(self) -> dict[tuple[str, str], Grid | None]:
        """The grids of the parameters, as `constants` has their names."""
        return self.__dict__.setdefault("_grids", {})  # type: ignore[no-any-return]

    def _tensor(self, name: str) -> Tensor:
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value  # type: ignore[no-any-return]

    def _register(self, name: str, array: Array, *, weight: bool = True) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        tensor = torch.from_numpy(np.array(array))
        if weight and tensor.is_floating_point():
            owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(last, tensor)

    def _free(self, name: str) -> str:
        """Return the name, or another one where it is taken by another tensor, by a module, or by Python."""
        taken = {*self.state_dict()}
        modules = {path for path, _ in self.named_modules()}
        for count in range(1, len(taken) + 3):
            new = name if count == 1 else f"{name}_{count}"
            parts = new.split(".")
            above = {".".join(parts[:k]) for k in range(1, len(parts))}
            clear = not any(hasattr(nn.Module, part) or part in vars(self) for part in parts)
            if clear and new not in taken | modules and not above & taken:
                return new
        return self._free(f"tensor_{name.replace('.', '_')}")


class Run:
    """What the translation of one step sees: its inputs and attributes."""

    def __init__(self, module: Graphed, step: Step, values: Sequence[Value], batch: Any) -> None:
        """Keep what belongs to the step."""
        self.module, self.step, self.values, self.batch = module, step, list(values), batch

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; text as such."""
        value = self.step.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, place: int) -> bool:
        """Whether there is such an input."""
        return place < len(self.values) and self.values[place] is not None

    def value(self, place: int) -> Tensor | Turned:
        """Return an input as it lies; its axes may be in another order."""
        value = self.values[place]
        if isinstance(value, Tensor | Turned):
            return value
        if isinstance(value, Constant):
            return self.module.parameter(value)
        if isinstance(value, np.ndarray):
            return _as_tensor(value)
        what = "integers on a grid" if isinstance(value, Integers) else "nothing"
        raise ModelError(f"the operator {self.step.op} (node {self.step.name!r}) gets {what}.", WAY_OUT)

    def tensor(self, place: int) -> Tensor:
        """Return an input with its axes as the graph has them."""
        value = self.value(place)
        return value.plain() if isinstance(value, Turned) else value

    def optional(self, place: int) -> Tensor | None:
        """Return an input that may be left out."""
        return self.tensor(place) if self.has(place) else None

    def constant(self, place: int) -> Constant | None:
        """Return an input if it is a constant of the file."""
        value = self.values[place] if place < len(self.values) else None
        return value if isinstance(value, Constant) else None

    def made(self, value: Constant, what: str, function: Callable[[Array], Array]) -> Tensor:
        """Return the parameter that a function makes of a constant's values; `what` tells such apart."""
        return self.module.parameter(value, what, lambda c: Constant(c.name, np.ascontiguousarray(function(c.array))))

    def known(self, place: int) -> Array:
        """Return an input whose numbers are known before the image is.

        Raises:
            ModelError: it depends on the image.
        """
        value = self.values[place]
        if value is not None and is_known(value):
            return numbers(value)
        raise ModelError(
            f"input {place} of {self.step.op} (node {self.step.name!r}) depends on the values of the image.", WAY_OUT
        )

    def sizes(self, place: int) -> list[Any]:
        """Return such an input as integers."""
        self.known(place)
        return whole(self.values[place])

    def listed(self, name: str, place: int) -> list[Any] | None:
        """Return integers that are an attribute in old opsets and an input in new ones; None if they are neither."""
        given = self.attribute(name)
        if given is not None:
            return list(given) if isinstance(given, list | tuple) else [given]
        return self.sizes(place) if self.has(place) else None

    def refuse(self, why: str) -> ModelError:
        """Return the error for what this step has no translation for."""
        return ModelError(
            f"the operator {self.step.op} (node {self.step.name!r}) {why}, which is not translated.", WAY_OUT
        )


def unknown(steps: Sequence[Step]) -> ModelError:
    """Return the error that names operators without a translation."""
    first = {step.op: step.name for step in reversed(steps)}
    named = ", ".join(f"{op} (node {name!r})" for op, name in list(first.items())[:5])
    many = "s" if len(first) > 1 else ""
    return ModelError(f"the file has the operator{many} {named}, which microtome cannot translate.", WAY_OUT)


def missing(graph: Graph) -> list[Step]:
    """Return the steps whose operator has no translation."""
    return [step for step in graph.steps if step.op not in TABLE and step.op not in known_sizes.TABLE]


def on_grid(x: Tensor, grid: Grid) -> Tensor:
    """Round to a grid per tensor."""
    return torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax)


def _as_tensor(array: Array) -> Tensor:
    if array.dtype != object:
        return torch.from_numpy(np.array(array))
    parts = [torch.full((), n, dtype=torch.int64) for n in array.reshape(-1)]
    return torch.stack(parts).reshape(array.shape)
