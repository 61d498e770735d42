"""What lies in a cohort's folder and makes no case: counted, so that nothing vanishes unseen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from microtome.medical.formats.csv_table import ENDINGS, why_not
from microtome.medical.formats.table import IMAGE_SUFFIXES, Table, count_of
from microtome.medical.readers.kind import suffix_of

# Left behind by operating systems: nobody's data.
SYSTEM = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "$recycle.bin", "__macosx"})
LONGEST = 8  # of an ending, with its dot; what is longer is part of a name, such as a DICOM UID
MOST = 4  # endings that a note names


def passed_over(path: Path, table: Table) -> tuple[str, ...]:
    """Notes on the files that belong to no case and that no other note speaks of.

    Of a folder everything below it is looked at, of a manifest the folders of its images. Names are not told: they may
    identify patients.
    """
    used = set(table.told)
    for row in table.rows:
        used.update(row.image, (file for file in (row.mask, *row.further_masks, row.target) if file is not None))
    images, others = Counter[str](), Counter[str]()
    tables = Counter[str]()
    for file in _files(path, table, used):
        if file in used:
            continue
        if file.suffix.lower() in ENDINGS and file.parent == path:
            tables[why_not(file, "image") or "there are several, or it was not asked for"] += 1
        else:
            suffix = suffix_of(file)
            (images if suffix in IMAGE_SUFFIXES else others)[_ending(suffix)] += 1
    notes = [f"{count_of(n, 'table')} beside the images not taken as a manifest: {why}." for why, n in tables.items()]
    parts = []
    if images:
        parts.append(f"{count_of(images.total(), 'image')} ({_endings(images)}) without a place in this layout")
    if others:
        parts.append(f"{count_of(others.total(), 'file')} ({_endings(others)}) of no kind that is read here")
    return (*notes, f"Passed over: {' and '.join(parts)}.") if parts else tuple(notes)


def endings_of(path: Path) -> str:
    """What the files below a folder are by their endings, for an error: ` It holds 3 .txt.`; empty without files."""
    found = Counter(_ending(suffix_of(file)) for file in _files(path, Table("", ()), set()))
    return f" It holds {_endings(found)}." if found else ""


def _files(path: Path, table: Table, used: set[Path]) -> Iterator[Path]:
    if path.is_dir():
        for folder, names, files in os.walk(path):
            here = Path(folder)
            names[:] = [n for n in names if _visible(n) and here / n not in used]
            yield from (here / name for name in files if _visible(name))
        return
    if path in used:  # a manifest, or a file that is the whole cohort
        folders = {image.parent for row in table.rows for image in row.image if image != path}
        for one in sorted(folders):
            yield from (one / entry.name for entry in os.scandir(one) if entry.is_file() and _visible(entry.name))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM


def _ending(suffix: str) -> str:
    return suffix if 1 < len(suffix) <= LONGEST and any(c.isalpha() for c in suffix) else "without ending"


def _endings(found: Counter[str]) -> str:
    named = [f"{count:,} {ending}" for ending, count in found.most_common(MOST)]
    rest = found.total() - sum(count for _, count in found.most_common(MOST))
    return ", ".join([*named, f"{rest:,} more"] if rest else named)
