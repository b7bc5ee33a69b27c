"""An archive that is given as the index of a DICOM folder: the files that its DICOMDIR names."""

from __future__ import annotations

import posixpath
from typing import Any

from medv_ray.archive.left_out import INDEX, UNINDEXED
from medv_ray.archive.store import Listing, Odd, Stored, list_folder
from medv_ray.dicom_walk import referenced_files
from medv_ray.errors import DataError

MOST_BYTES = 256 * 2**20
MISSING, OUTSIDE = "named by the DICOMDIR and not there", "named by the DICOMDIR, out of its folder"


def indexed(filesystem: Any, path: str) -> Listing:
    """The files below the folder of a DICOMDIR that it names; the others, and names that lead to no
    file, are odd. Names match without regard to case where only that finds one file.

    Raises DataError E1105 for an index that cannot be read.
    """
    with filesystem.open_input_file(path) as file:
        data = file.read(MOST_BYTES)
    try:
        wanted = dict.fromkeys(referenced_files(data))
    except (ValueError, UnicodeError) as error:
        name = posixpath.basename(path)
        raise DataError("E1105", f"{name}: is no index of DICOM files, or damaged.") from error
    listed = list_folder(filesystem, posixpath.dirname(path))
    there = {file.name: file for file in listed.files}
    folded: dict[str, list[Stored]] = {}
    for file in listed.files:
        folded.setdefault(file.name.casefold(), []).append(file)
    found: dict[str, Stored] = {}
    odd = [Odd(posixpath.basename(path), INDEX)]
    for parts in wanted:
        name = "/".join(parts)
        if not name or any(part in ("", ".", "..") or "/" in part for part in parts):
            odd.append(Odd(name, OUTSIDE))
            continue
        alike = folded.get(name.casefold(), [])
        file = there.get(name) or (alike[0] if len(alike) == 1 else None)
        if file is None:
            odd.append(Odd(name, MISSING))
        else:
            found[file.name] = file
    known = {*found, posixpath.basename(path)}
    odd += [Odd(file.name, UNINDEXED) for file in listed.files if file.name not in known]
    return Listing(list(found.values()), [*odd, *listed.odd])
