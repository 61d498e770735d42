"""Models from the user's own code: `package.module:factory` or `path/to/file.py:factory`."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError, ModelError, ReadError
from microtome.graph.quiet import first_line
from microtome.models.base import Loaded, Wanted, captured, shape_of

if TYPE_CHECKING:
    from torch import nn

    from microtome.models.base import Given

NAME = "factory"
LOOKS_LIKE = "package.module:factory or path/to/file.py:factory (with --weights)"
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
INSTALLED = tuple(Path(folder).resolve() for name, folder in sysconfig.get_paths().items() if name.endswith("lib"))


def matches(source: Given) -> bool:
    """Whether it names something in a Python file or module."""
    return split_spec(str(source)) is not None and not Path(str(source)).is_dir()


def load(source: Given, wanted: Wanted) -> Loaded:
    """Run the user's code and capture what it makes, with the weights given."""
    spec = split_spec(str(source))
    assert spec is not None
    weights = wanted.weights
    if weights is not None and not weights.exists():
        raise ReadError(f"The weights file {weights} does not exist.", "Give the file as --weights FILE.")
    module, file = build(*spec)
    loaded = captured(module, weights, shape_of(wanted, of=str(source)), wanted)
    notes = () if weights else ("No weights file was given: the network has the weights that its own code gives it.",)
    files = (*((file,) if file else ()), *loaded.files)
    return replace(loaded, files=files, notes=(*notes, *loaded.notes))


def split_spec(source: str) -> tuple[str, str] | None:
    """Return the two sides of `package.module:factory` or `file.py:factory`; None if it is neither."""
    place, colon, name = source.rpartition(":")
    if not colon or not MODULE.fullmatch(name):
        return None
    return (place, name) if place.endswith(".py") or MODULE.fullmatch(place) else None


def build(place: str, name: str) -> tuple[nn.Module, Path | None]:
    """Import the user's code and make the module.

    Args:
        place: a module's dotted name, or the path of a `.py` file; its folder can be imported from meanwhile.
        name: a function without arguments, a module class, or a module, in that code; may be dotted.

    Returns:
        The module, and the file that the code stands in.

    Raises:
        ReadError: there is no such file.
        ModelError: the code cannot be imported, has no such name, fails (the error names its line), or makes no module.
    """
    file = Path(place).resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ReadError(f"{place} does not exist.", "Give the .py file that builds the network, as file.py:factory.")
    with _importing_from(file.parent if file else Path.cwd()):
        code = _import_file(file) if file else _import_module(place)
        module = _make(_find(code, name, place), name, place)
    origin = getattr(code, "__file__", None)
    return module, Path(origin) if origin else None


def _import_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise ModelError(
                f"There is no Python module {error.name}.",
                "Install the package, run in the folder that holds it, or give the file as path/to/file.py:factory.",
            ) from error
        raise _failed(error, f"{place} cannot be imported") from error
    except (Exception, SystemExit) as error:
        raise _failed(error, f"{place} cannot be imported") from error


def _import_file(file: Path) -> ModuleType:
    # A name of its own: the file may be called like a module that its code imports.
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = code  # dataclasses and torch look their classes' module up
    try:
        spec.loader.exec_module(code)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise _failed(error, f"{file.name} cannot be imported") from error
    return code


def _find(code: ModuleType, name: str, place: str) -> Any:
    value: Any = code
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n, v in vars(code).items() if callable(v) and getattr(v, "__module__", "") == code.__name__]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
            hint = f"It defines {', '.join(near)}." if near else "It defines no function and no class."
            raise ModelError(f"{place} has no {name}.", hint)
        value = getattr(value, part)
    return value


def _make(factory: Any, name: str, place: str) -> nn.Module:
    from torch import nn

    made = factory
    if not isinstance(factory, nn.Module):
        if not callable(factory):
            raise ModelError(f"{place}:{name} is no function but {type(factory).__name__}.", "Name a function.")
        needed = _needed(factory)
        if needed:
            raise ModelError(
                f"{place}:{name} needs arguments ({', '.join(needed)}).",
                "Write a function without arguments that returns the network, and name that one.",
            )
        try:
            made = factory()
        except MicrotomeError:
            raise
        except (Exception, SystemExit) as error:
            raise _failed(error, f"{place}:{name} fails") from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{place}:{name} returns {type(made).__name__}, no torch.nn.Module.", "Return the network itself."
        )
    return made


def _needed(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _failed(error: BaseException, what: str) -> ModelError:
    line = _user_line(error)
    hint = "Correct the code that builds the network."
    if isinstance(error, ModuleNotFoundError):
        hint = f"Install the package that brings {error.name}."
    elif isinstance(error, SystemExit):
        hint = "Put what the file does as a script under `if __name__ == '__main__':`."
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return ModelError(f"{what}{f', at {line}' if line else ''}: {type(error).__name__}: {text}.", hint)


def _user_line(error: BaseException) -> str:
    """Return `file:line (code)` of the deepest frame of the user's own code; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno} ({(error.text or '').strip()})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and path.is_file() and not _is_installed(path):
            return f"{path.name}:{frame.lineno} ({(frame.line or '').strip()})"
    return ""


def _is_installed(path: Path) -> bool:
    """Whether a file belongs to Python, to an installed package or to microtome, not to the user."""
    path = path.resolve()
    return any(folder in path.parents for folder in (*INSTALLED, Path(__file__).resolve().parents[2]))


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put a folder first on `sys.path`, and out of the way what another model's folder left under the same names."""
    names: set[str] = set()
    with contextlib.suppress(OSError):  # a folder that may not be listed
        names |= {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    aside = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] not in names or not file or name == "__main__":
            continue
        if folder not in Path(file).resolve().parents and not _is_installed(Path(file)):
            aside[name] = sys.modules.pop(name)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        sys.modules.update(aside)
