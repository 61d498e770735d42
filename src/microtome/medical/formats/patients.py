"""Who is a patient: the user's own rule, or what well-known names say; otherwise every file is a patient of its own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from microtome.errors import OptionError
from microtome.medical.formats.table import count_of
from microtome.medical.readers.kind import stem_of

# Patients in the names of well-known files and folders: `person12_bacteria_46`, `IM-0115-0001`, `sub-01_T1w` (BIDS),
# `patient007_frame01`, `TCGA_CS_4941_19960909_1`.
PATIENT_PATTERNS = {
    "personN": re.compile(r"person\d+"),
    "IM-NNNN": re.compile(r"IM-\d+"),
    "sub-NN": re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z]*\d+[A-Za-z0-9]*"),
    "patientN": re.compile(r"(?<![A-Za-z])[Pp]atient[ _-]?\d+"),
    "subjectN": re.compile(r"(?<![A-Za-z])[Ss]ubject[ _-]?\d+"),
    "TCGA-XX-XXXX": re.compile(r"TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4}"),
}
FEW_FOLDERS = 3  # fewer folders below are no patients: a part, a site, or a folder for all
OWN = "every file is a patient of its own"


class PatientsByPattern:
    """The patient from a user's regular expression: its first group, or all that it matched.

    It is searched in the file's path below the cohort's folder, with `/` between folders.
    """

    def __init__(self, pattern: str, root: Path) -> None:
        """Compile the pattern.

        Raises:
            OptionError: not a regular expression.
        """
        try:
            self._expression = re.compile(pattern)
        except re.error as error:
            raise OptionError(f"The patient pattern '{pattern}' is not a regular expression: {error}.") from error
        self._pattern, self._root = pattern, root

    def __call__(self, path: Path) -> str:
        """Return the patient of a file.

        Raises:
            OptionError: the pattern does not match.
        """
        name = below(path, self._root)
        found = self._expression.search(name)
        if found is None:
            raise OptionError(f"The patient pattern '{self._pattern}' matches nothing in {name}.", "Widen the pattern.")
        return str((found.group(1) if self._expression.groups else None) or found.group(0))

    @property
    def text(self) -> str:
        """The rule in words."""
        return f"what '{self._pattern}' matches in the path of a file"


class PatientsInNames:
    """The default: a well-known pattern in the name of a file or of a folder above it, or else the file itself.

    Files are not the same patient's because they have one name in different folders: many sets number the files of each
    class folder anew.
    """

    def __init__(self, root: Path) -> None:
        """Nothing has been looked at."""
        self._root, self._found = root, Counter[str]()

    def __call__(self, path: Path) -> str:
        """Return the patient of a file."""
        name, patient = patient_in_name(Path(below(path, self._root)))
        self._found[name] += 1
        return patient

    def folder(self, path: Path) -> str:
        """Return the patient of a file in a folder that holds one patient's files."""
        name, patient = patient_in_name(Path(below(path, self._root)))
        self._found[name or "the folder that holds a file"] += 1
        return patient if name else below(path.parent, self._root)

    @property
    def text(self) -> str:
        """The rule in words, without any name."""
        named = [f"{name} ({count_of(count, 'file')})" for name, count in self._found.items() if name]
        if not named:
            return OWN
        others = self._found[""]
        return f"named by {', '.join(named)}" + (f"; each of {count_of(others, 'other file')} is one" if others else "")


def patient_in_name(path: Path) -> tuple[str, str]:
    """The pattern in a path and what it matched; the name is looked at before the folders. Without one: the path."""
    for part in reversed(path.parts):
        for name, pattern in PATIENT_PATTERNS.items():
            found = pattern.search(part)
            if found:
                return name, found.group(0)
    return "", (path.parent / stem_of(path)).as_posix()


def below(path: Path, root: Path) -> str:
    """A path as it is below a folder, with `/`; outside of it the name."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
