"""The command line: parse, call one verb, print."""

import sys

from microtome import crash
from microtome.cli import bench, compress, demo, evaluate, inspect, predict, recipes, report
from microtome.cli.app import app

__all__ = ["app", "bench", "compress", "demo", "evaluate", "inspect", "main", "predict", "recipes", "report"]


def main() -> None:
    """Run the command line; `microtome.__main__` is where it begins."""
    sys.exit(crash.run(app))
