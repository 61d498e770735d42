"""microtome compresses medical-imaging networks and proves that nothing clinical was lost."""

__version__ = "0.1.0"
