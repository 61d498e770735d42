"""The `microtome` command, and `python -m microtome`."""

from __future__ import annotations

import sys

from microtome import crash


def main() -> None:
    """Run the command line; what goes wrong while it is imported is a crash as well."""

    def program() -> None:
        from microtome.cli import main as command

        command()

    sys.exit(crash.run(program))


if __name__ == "__main__":
    main()
