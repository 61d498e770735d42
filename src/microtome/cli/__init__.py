"""The command line: parse, call one verb, print."""

from microtome.cli import bench, compress, demo, evaluate, inspect, predict, recipes, report
from microtome.cli.app import app

__all__ = ["app", "bench", "compress", "demo", "evaluate", "inspect", "main", "predict", "recipes", "report"]


def main() -> None:
    """Entry point of the `microtome` command."""
    app()
