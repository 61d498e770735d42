"""The command line: parse, call one verb, print."""

import sys

from microtome import crash
from microtome.cli import bench, compress, demo, evaluate, inspect, parity, predict, recipes, report, targets
from microtome.cli.app import app

__all__ = [
    "app",
    "bench",
    "compress",
    "demo",
    "evaluate",
    "inspect",
    "main",
    "parity",
    "predict",
    "recipes",
    "report",
    "targets",
]


def main() -> None:
    """Run the command line; `microtome.__main__` is where it begins."""
    sys.exit(crash.run(app))
