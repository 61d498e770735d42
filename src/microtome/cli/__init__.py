"""The command line: parse, call one verb, print."""

from microtome.cli import bench, compress, demo, evaluate, inspect, predict, report
from microtome.cli.app import app

__all__ = ["app", "bench", "compress", "demo", "evaluate", "inspect", "main", "predict", "report"]


def main() -> None:
    """Entry point of the `microtome` command."""
    app()
