"""Where many jobs run: on this machine, on several. Empty so far: see `docs/design.md`."""
