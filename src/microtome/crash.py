"""How a program ends that did what nobody foresaw: its own exit code, one sentence, and the trace in a file.

Exit code 1 says that a network is inferior, so that no crash may end with it. The sentence tells the kind of the error
and where in the code it was raised, but not its message: that may name a patient's file. Standard library only, since
what crashed may be an import.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

CRASHED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT
READER_GONE = 141  # 128 + SIGPIPE, as of other tools behind whose output a pipe was closed
OURS = Path(__file__).parent


def run(program: Callable[[], None]) -> int:
    """Run a program, write out what it printed, and return its exit code; nothing is raised.

    A `SystemExit` passes as the program's own word: it must see to it that others' do not reach this.
    """
    try:
        try:
            program()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else CRASHED
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        code = ended_by(error)
    return code


def ended_by(error: BaseException) -> int:
    """Say what ended the program, and return its exit code: CRASHED, but for what the user or a pipe ended."""
    if isinstance(error, KeyboardInterrupt):
        _say("Interrupted.")
        return INTERRUPTED
    if _reader_gone(error):
        _unplug()
        return READER_GONE
    kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    _say(f"internal error: {kind}{_place(error)}. {_kept(error)}")
    _unplug()
    return CRASHED


def _reader_gone(error: BaseException) -> bool:
    """Whether it is that standard output is a pipe that nobody reads any more; another pipe may break as well."""
    if isinstance(error, SystemExit):  # rich and click make one of it, and turn standard output elsewhere
        return isinstance(error.__cause__ or error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(1, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except Exception as other:  # Windows has no poll
        return isinstance(other, BrokenPipeError)


def _unplug() -> None:
    """Throw away what standard output cannot take: or Python tries again at its end, and exits with 120."""
    try:
        sys.stdout.flush()
    except Exception:
        with contextlib.suppress(Exception):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str) -> None:
    """Print to standard error, if there is one."""
    with contextlib.suppress(Exception):
        print(sentence, file=sys.stderr, flush=True)


def _place(error: BaseException) -> str:
    """Return ` at FILE:LINE` of the deepest frame of microtome's own code, or of the deepest one; empty if none is."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if OURS in Path(frame.filename).parents]
    for frame in reversed(ours or frames):
        return f" at {_short(Path(frame.filename))}:{frame.lineno}"
    return ""


def _short(path: Path) -> str:
    return str(path.relative_to(OURS.parent)) if OURS in path.parents else path.name


def _kept(error: BaseException) -> str:
    """Write the trace where only the user can read it, and return the sentence that says where."""
    for folder in _folders():
        try:
            handle, path = tempfile.mkstemp(prefix="microtome-crash-", suffix=".txt", dir=folder)
            os.close(handle)
            trace = "".join([f"Python {sys.version}\n{sys.platform}\n\n", *traceback.format_exception(error)])
            Path(path).write_text(trace, encoding="utf-8", errors="backslashreplace")
        except Exception:
            continue
        return f"The full trace, which may name your files, is in {path}"
    return "The full trace could be written neither to the folder for temporary files nor here."


def _folders() -> Iterator[str]:
    """Yield where a trace may be written."""
    with contextlib.suppress(OSError):  # none that can be written to
        yield tempfile.gettempdir()
    with contextlib.suppress(OSError):  # it was removed
        yield str(Path.cwd())
