"""What a measurement depends on: processor, threads, versions, memory."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "torch", "openvino", "onnxruntime", "onnx", "monai", "nibabel", "pydicom", "SimpleITK")
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")

# What makes a network in few bits fast: dot products of 8-bit integers, tiles of them, and bfloat16.
FAST = {
    "int8 dot products (VNNI)": ("avx_vnni", "avx512_vnni", "asimddp", "i8mm"),
    "int8 tiles (AMX)": ("amx_int8",),
    "bf16": ("avx512_bf16", "amx_bf16"),
}


@functools.cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Return the processor's name and those of its instruction sets that matter here."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), fields.get("flags", fields.get("Features", ""))
    present = set(flags.split())
    return name, tuple(flag for flag in INSTRUCTIONS if flag in present)


def arithmetic() -> str:
    """Return in a sentence which fast arithmetic the processor has, as far as the operating system tells."""
    name, instructions = processor()
    have = [title for title, flags in FAST.items() if any(flag in instructions for flag in flags)]
    lack = [title for title in FAST if title not in have]
    if not instructions:
        return f"{name}: it is not known which fast integer arithmetic it has."
    text = f"{name} has {' and '.join(have)}" if have else f"{name} has no fast arithmetic for integers or bf16"
    return f"{text}, not {' or '.join(lack)}." if have and lack else f"{text}."


def describe(threads: int) -> dict[str, Any]:
    """Return the `environment` of `result.json`; `threads` 0 means all cores."""
    from microtome.version import __version__

    versions = {"microtome": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    name, instructions = processor()
    cores = os.cpu_count() or 1
    return {
        "cpu": name,
        "cores": cores,
        "threads": threads or cores,
        "isa": list(instructions),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    if sys.platform == "win32":
        import psutil

        return round(float(psutil.Process().memory_info().peak_wset) / 1024**2, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
