"""A package behind a door: DICOM node, server, monitor, federation. Empty so far: see `docs/design.md`."""
