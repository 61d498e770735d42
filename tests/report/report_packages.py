"""Package folders as `compress` would leave them, with made-up but realistic numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SITES = ("Montgomery", "Shenzhen")


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": round(value, 5), "low": round(value - half, 5), "high": round(value + half, 5)}


def environment() -> dict[str, Any]:
    return {
        "cpu": "Intel(R) Xeon(R) Platinum 8488C",
        "cores": 2,
        "threads": 2,
        "isa": ["avx512_vnni", "avx512_bf16", "amx_int8"],
        "os": "Linux 6.1",
        "python": "3.11.2",
        "versions": {"torch": "2.13.0", "openvino": "2026.4.1", "numpy": "2.3.4"},
    }


def quantizers(names: list[str]) -> list[dict[str, Any]]:
    draw = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for name in names:
        low, high = -float(draw.uniform(0, 3)), float(draw.uniform(1, 9))
        rows.append({"name": name, "kind": "activation", "qtype": "uint8", "low": low, "high": high, "observer": "mse"})
        rows.append({"name": name, "kind": "weight", "qtype": "int8", "low": -0.4, "high": 0.4, "observer": "minmax"})
    return rows


def examined(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quantizers with what a diagnosis adds to them: the first activation is clipped."""
    draw = np.random.default_rng(7)
    found = []
    for place, row in enumerate(rows):
        span = row["high"] - row["low"]
        low, high = row["low"] - 0.02 * span, row["high"] + (0.6 if place == 0 else 0.02) * span
        values = np.clip(draw.normal((row["low"] + row["high"]) / 2, span / 6, 50_000), low, high)
        if place == 0:
            values = np.append(values, draw.uniform(row["high"], high, 300))
        counts = np.histogram(values, bins=64, range=(low, high))[0]
        found.append(
            {
                **row,
                "bits": 4 if row["kind"] == "weight" else 8,
                "clipped": float(np.mean(values > row["high"])),
                "sqnr_db": 9.5 if place == 0 else round(float(draw.uniform(18, 45)), 2),
                "histogram": {"low": low, "high": high, "counts": counts.tolist()},
            }
        )
    return found


def sensitivity(names: list[str]) -> dict[str, Any]:
    """One layer that stands out, one that is in float."""
    draw = np.random.default_rng(8)
    rows = []
    for place, name in enumerate(names):
        alone = 14.3 if name == "model.bottom.conv1" else round(float(draw.uniform(28, 52)), 2)
        rows.append(
            {
                "name": name, "op": "conv", "bits": [4, 8], "own_db": round(alone - 3, 2),
                "accumulated_db": round(40 - 1.6 * place, 2), "alone_db": alone,
            }
        )  # fmt: skip
    rows[-1].update(bits=[None, None], own_db=None, alone_db=None)
    return {"reference": "parent", "batches": 4, "complete": True, "network_db": 12.83, "layers": rows}


def trials() -> list[dict[str, Any]]:
    names = (("minmax", -0.031, False, 41.2), ("int8", -0.008, None, 38.9), ("reconstruct", -0.0004, True, 38.4))
    rows: list[dict[str, Any]] = [
        {
            "name": name, "metric": "dice", "value": 0.89 + lost, "difference": lost, "lower": lost - 0.002,
            "worst_subgroup": lost, "verdict": verdict, "latency_ms": latency, "bytes": 1_243_904, "seconds": 33.0,
            "chosen": bool(verdict), "reason": f"{'non-' if verdict else ''}inferior on the tuning cases.",
        }
        for name, lost, verdict, latency in names
    ]  # fmt: skip
    return [*rows, {"name": "mixed", "verdict": None, "reason": "could not run: it is too small."}]


def diagnosed(names: list[str]) -> dict[str, Any]:
    """All that says where accuracy goes; nothing of it need be there."""
    return {
        "quantizers": examined(quantizers(names)),
        "sensitivity": sensitivity(names),
        "trials": trials(),
        "pareto": [
            {"name": f"weights of 2 to {bits} bits", "bytes": 150_000 * bits, "loss": 4.0**-bits, "chosen": bits == 4}
            for bits in range(2, 9)
        ],
        "training": {
            "steps": list(range(0, 1001, 100)),
            "loss": [round(0.4 * 0.8**step, 5) for step in range(11)],
            "monitor": [None, *(round(0.45 * 0.82**step + 0.02, 5) for step in range(1, 11))],
        },
    }


def layers(names: list[str], *, failed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(6)
    rows = []
    for place, name in enumerate(names):
        executed = "f32" if place < failed else "int8"
        rows.append(
            {
                "name": name,
                "op": "conv_transpose" if "up" in name and place % 2 else "conv",
                "requested": "int8",
                "executed": executed,
                "kernel": "brgconv_avx512_amx_I8" if executed == "int8" else "jit_avx512_core_f32",
                "bytes": int(draw.integers(2_000, 900_000)),
                "latency_ms": round(float(draw.gamma(1.5, 2.0)), 3),
            }
        )
    rows.append(
        {"name": "norm", "op": "norm", "requested": "f32", "executed": "bf16", "kernel": "mvn", "latency_ms": 1.2}
    )
    return rows


def segmentation() -> dict[str, Any]:
    """A 3-D network with two structures: non-inferior, everything in int8."""
    draw = np.random.default_rng(1)
    cases = []
    for place in range(60):
        front, back = draw.beta(60, 7, 2)
        loss = draw.normal(0.0003, 0.0016, 2)
        cases.append(
            {
                "case": f"case-{place + 1:04d}",
                "patient": f"patient-{place + 1:04d}",
                "subgroups": {"site": SITES[place % 2]},
                "parent": {"dice": (front + back) / 2, "dice/anterior": front, "dice/posterior": back},
                "compressed": {
                    "dice": (front + back - loss.sum()) / 2,
                    "dice/anterior": front - loss[0],
                    "dice/posterior": back - loss[1],
                },
                "agreement": 1 - abs(float(draw.normal(0, 0.0006))),
            }
        )
    parent = {
        "dice": interval(0.8912, 0.0088), "dice/anterior": interval(0.8974, 0.009),
        "dice/posterior": interval(0.885, 0.0101), "nsd": interval(0.9731, 0.0062),
        "nsd/anterior": interval(0.9752, 0.006), "nsd/posterior": interval(0.971, 0.0071),
        "hd95": interval(1.31, 0.11), "hd95/anterior": interval(1.27, 0.12), "hd95/posterior": interval(1.35, 0.14),
    }  # fmt: skip
    difference = {
        "dice": interval(-0.00031, 0.00042), "dice/anterior": interval(-0.00012, 0.00055),
        "dice/posterior": interval(-0.0005, 0.0006), "nsd": interval(0.0002, 0.0009),
        "nsd/anterior": interval(0.0004, 0.001), "nsd/posterior": interval(0.0, 0.0011),
        "hd95": interval(0.004, 0.02), "hd95/anterior": interval(-0.003, 0.021),
        "hd95/posterior": interval(0.011, 0.03),
    }  # fmt: skip
    names = [f"model.{part}.conv{unit}" for part in ("down0", "down1", "bottom", "up1", "up0") for unit in range(3)]
    names += ["model.skip", "model.final"]
    return {
        "schema": 1, "microtome": "0.1.0", "created": "2026-11-21T03:00:00Z", "task": "segmentation",
        "target": "openvino", "recipe": "int8", "title": "Residual 3-D U-Net, hippocampus",
        "classes": ["background", "anterior", "posterior"],
        "parent": {
            "sha256": "a1" * 32, "parameters": 1_188_035, "bytes": 4_790_112, "latency_ms": 303.2, "metrics": parent,
        },
        "compressed": {
            "sha256": "b2" * 32, "parameters": 1_188_035, "bytes": 1_243_904, "latency_ms": 38.4, "file": "model.xml",
            "metrics": {
                name: interval(value["value"] + difference[name]["value"], value["high"] - value["value"])
                for name, value in parent.items()
            },
        },
        "difference": difference,
        "agreement": interval(0.99913, 0.0001),
        "verdict": {
            "metric": "dice", "margin": 0.005, "cases": 60, "patients": 60, "lower": -0.00066, "non_inferior": True,
            "reason": "The lower bound lies above the margin.",
        },
        "operating_point": None,
        "runs": [
            {"name": "eager f32", "runtime": "pytorch", "precision": "f32", "latency_ms": 303.2, "bytes": 4_790_112},
            {"name": "openvino f32", "runtime": "openvino", "precision": "f32", "latency_ms": 178.0,
             "bytes": 4_775_000},
            {"name": "openvino bf16", "runtime": "openvino", "precision": "bf16", "latency_ms": 90.1,
             "bytes": 2_400_000},
            {"name": "openvino int8", "runtime": "openvino", "precision": "int8", "latency_ms": 38.4,
             "bytes": 1_243_904, "compressed": True},
        ],
        "layers": layers(names),
        "integer": {"requested": 17, "executed": 17},
        "counts": {
            "evaluation": 60, "patients": 60, "calibration": 32, "tuning": 20, "failed": 0,
            "empty_reference": {"anterior": 0, "posterior": 2},
        },
        "subgroups": {
            "site": {
                site: {
                    "cases": 30,
                    "parent": {"dice": interval(0.89 + shift, 0.012)},
                    "compressed": {"dice": interval(0.8897 + shift, 0.012)},
                    "difference": {"dice": interval(-0.0003 - shift / 20, 0.0009)},
                }
                for site, shift in zip(SITES, (0.0, 0.006), strict=True)
            }
        },
        "cases": cases,
        "examples": [
            {"case": "case-0020", "kind": "best", "text": "Dice 0.943 → 0.944", "slice": 21},
            {"case": "case-0011", "kind": "typical", "text": "Dice 0.891 → 0.890", "slice": 17},
            {"case": "case-0007", "kind": "worst", "text": "Dice 0.812 → 0.803", "slice": 17},
        ],
        **diagnosed(names),
        "memory": {"compress_peak_mib": 1234.0},
        "seconds": {"capture": 1.4, "calibrate": 41.0, "export": 6.2, "evaluate": 190.5, "bench": 32.0},
        "environment": environment(),
        "warnings": [],
    }  # fmt: skip


def classification() -> dict[str, Any]:
    """A two-class network that missed the mark: too few cases, layers in float, int8 slower than bf16."""
    draw = np.random.default_rng(2)
    cases = []
    for place in range(180):
        label = int(draw.random() < 0.6)
        score = float(1 / (1 + np.exp(-draw.normal(2.2 * label - 1.2, 1.4))))
        after = float(np.clip(score + draw.normal(0, 0.02), 0, 1))
        cases.append(
            {
                "case": f"case-{place + 1:04d}", "patient": f"patient-{place // 2 + 1:04d}", "label": label,
                "parent": {"score": [1 - score, score]}, "compressed": {"score": [1 - after, after]},
            }
        )  # fmt: skip
    parent = {
        "auroc": interval(0.8831, 0.025), "auprc": interval(0.917, 0.02), "sensitivity": interval(0.81, 0.05),
        "specificity": interval(0.79, 0.06),
    }  # fmt: skip
    compressed = {
        "auroc": interval(0.8802, 0.026), "auprc": interval(0.915, 0.02), "sensitivity": interval(0.8, 0.05),
        "specificity": interval(0.79, 0.06),
    }  # fmt: skip
    names = [f"features.denseblock{block}.layer{unit}.conv" for block in range(1, 5) for unit in range(1, 13)]
    result = segmentation()
    result.update(
        {
            "task": "classification", "title": "DenseNet121, chest X-ray", "classes": ["NORMAL", "PNEUMONIA"],
            "parent": {**result["parent"], "metrics": parent, "latency_ms": 64.0, "bytes": 28_100_000},
            "compressed": {**result["compressed"], "metrics": compressed, "latency_ms": 8.1, "bytes": 7_600_000},
            "difference": {
                "auroc": interval(-0.0029, 0.0098), "auprc": interval(-0.002, 0.008),
                "sensitivity": interval(-0.01, 0.02), "specificity": interval(0.0, 0.02),
            },
            "agreement": interval(0.983, 0.012),
            "verdict": {
                "metric": "auroc", "margin": 0.01, "cases": 180, "patients": 90, "lower": -0.0112,
                "non_inferior": None, "reason": "Not enough cases: about 310 are needed.",
            },
            "operating_point": {"threshold": 0.43, "rule": "youden", "fixed_on": "tuning cases, parent"},
            "runs": [
                {"name": "eager f32", "runtime": "pytorch", "precision": "f32", "latency_ms": 64, "bytes": 28_100_000},
                {"name": "openvino bf16", "runtime": "openvino", "precision": "bf16", "latency_ms": 7.7},
                {"name": "openvino int8", "runtime": "openvino", "precision": "int8", "latency_ms": 8.1,
                 "bytes": 7_600_000, "compressed": True},
            ],
            "layers": layers(names, failed=5),
            "integer": {"requested": 48, "executed": 43},
            "counts": {"evaluation": 180, "patients": 90, "calibration": 64, "tuning": 40, "failed": 1},
            "subgroups": {},
            "cases": cases,
            "examples": [
                {"case": "case-0003", "kind": "worst", "text": "PNEUMONIA, score 0.52 → 0.41: decision changed"},
                {"case": "case-0008", "kind": "typical", "text": "NORMAL, score 0.12 → 0.13"},
            ],
            "quantizers": quantizers(names),
            **dict.fromkeys(("sensitivity", "trials", "pareto", "training")),
            "warnings": ["5 convolutions ran in f32 because their input is not quantized."],
        }
    )  # fmt: skip
    return result


def phantom(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture with two touching ellipses, and their label map."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = rows / size[0] - 0.5, columns / size[1] - 0.5
    front = (x + 0.06) ** 2 / 0.03 + (y + 0.1) ** 2 / 0.014 < 1
    back = ((x - 0.02) ** 2 / 0.022 + (y - 0.14) ** 2 / 0.02 < 1) & ~front
    image = 0.35 + 0.25 * np.cos(5 * x) * np.cos(4 * y) + 0.2 * front + 0.12 * back
    image = image + rng.normal(0, 0.03, size)
    return image.clip(0, 1).astype(np.float32), (front + 2 * back).astype(np.uint8)


def example_arrays(result: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {}
    for entry in result["examples"]:
        image, reference = phantom(rng, (50, 60) if result["task"] == "segmentation" else (120, 140))
        arrays[f"{entry['case']}/image"] = image
        if result["task"] == "segmentation":
            parent = np.roll(reference, 1, axis=1)
            compressed = parent.copy()
            compressed[10:24, 18:26] = np.roll(parent, 2, axis=1)[10:24, 18:26]
            compressed[36:42, 30:42] = np.roll(parent, -2, axis=0)[36:42, 30:42]
            arrays[f"{entry['case']}/reference"] = reference
            arrays[f"{entry['case']}/parent"] = parent
            arrays[f"{entry['case']}/compressed"] = compressed
    return arrays


def write_package(folder: Path, result: dict[str, Any], *, arrays: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if arrays:
        np.savez_compressed(folder / "examples.npz", **example_arrays(result))
    return folder
