"""A `Pipeline` in words."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.medical.pipeline import Pipeline


def describe(pipeline: Pipeline) -> str:
    """The steps of a pipeline on one line, for people."""
    p = pipeline
    steps = [f"{p.spatial_dims}-D", f"{p.channels} channel{'s' * (p.channels > 1)}{' (gray)' if p.grayscale else ''}"]
    steps += [f"orientation {p.orientation}"] if p.orientation else []
    steps += [f"stored axes {', '.join(map(str, p.transpose))}"] if p.transpose else []
    steps += [f"crop to values > {p.crop_threshold:g}"] if p.crop == "foreground" else []
    steps += ["crop to values other than 0"] if p.crop == "nonzero" else []
    grid, values = _grid(p), _intensities(p)
    steps += values + grid if p.normalize_first else grid + values
    steps += ["slice by slice"] if p.slices == 1 else [f"{p.slices} slices as channels"] if p.slices else []
    steps += [f"windows of {_times(p.patch)}, overlap {p.overlap:g}"] if p.patch else []
    steps += [f"mirrored along axes {', '.join(map(str, p.mirror))}"] if p.mirror else []
    steps += ["windows of one value skipped"] if p.skip_empty else []
    steps += [f"pad to multiples of {p.divisible}"] if p.divisible > 1 and not (p.patch or p.size) else []
    steps += [f"with {name} {one}" for name, one in (p.inputs or {}).items()]
    steps += [f"output {p.output}"] if p.output else []
    steps += [f"beside it {', '.join(p.keep)}"] if p.keep else []
    steps += [p.activation] if p.activation != "none" else []
    steps += [f"overlapping regions {', '.join(p.regions)}"] if p.regions else []
    steps += ["labels chosen on the network's grid"] if p.decide == "network" else []
    steps += [f"cleanup: {', '.join(step.step.replace('_', ' ') for step in p.cleanup)}"] if p.cleanup else []
    return ", ".join(steps)


def _grid(p: Pipeline) -> list[str]:
    how = "" if p.interpolation == "linear" else f" ({p.interpolation})"
    centres = ", first centres together" if p.align == "centres" else ""
    steps = [f"resample to {_times(p.spacing)} mm{how}{centres}"] if p.spacing else []
    return steps + ([f"resize to {_times(p.size)}{how}"] if p.size else [])


def _intensities(p: Pipeline) -> list[str]:
    pairs = dict.fromkeys(pair for pair in p.windows if pair)
    steps = [f"clip to {' / '.join(f'{low:g} … {high:g}' for low, high in pairs)}"] if pairs else []
    steps += [f"clip to percentiles {p.percentiles[0]:g} … {p.percentiles[1]:g}"] if p.percentiles else []
    kinds = p.normalize if isinstance(p.normalize, str) else " / ".join(p.normalize)
    to = "" if p.range == (0, 1) else f" to {p.range[0]:g} … {p.range[1]:g}"
    together = ", all channels together" if p.together else ""
    return steps + ([f"normalize {kinds}{to}{together}"] if kinds != "none" else [])


def _times(values: Sequence[float | None]) -> str:
    return "×".join("·" if value is None else f"{value:g}" for value in values)
