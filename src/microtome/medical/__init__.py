"""Images from files, and everything between a file and the network. No torch."""

import importlib.util
import sys

# pydicom (which nibabel imports too) imports python-gdcm where that is installed. It looks for two modules of Python 2,
# takes a folder of that name beside the user's script for one of them, and fails.
_OF_PYTHON_2 = ("dl", "DLFCN")
if "pydicom" not in sys.modules and any(importlib.util.find_spec(name) is not None for name in _OF_PYTHON_2):
    _before = {name: sys.modules[name] for name in _OF_PYTHON_2 if name in sys.modules}
    sys.modules.update(dict.fromkeys(_OF_PYTHON_2))  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        import pydicom  # noqa: F401
    finally:
        for _name in _OF_PYTHON_2:
            del sys.modules[_name]
        sys.modules.update(_before)
