"""Torch's own chatter, and its messages as one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "torch._subclasses",
    "torch.export",
    "torch.onnx",
    "torch._export",
    "torch.fx.experimental",
    "onnxscript",
    "onnx_ir",
)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, for one-sentence errors."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and log lines of torch's own export code from the user; errors pass."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # errors come as exceptions
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
