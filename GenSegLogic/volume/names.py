"""File names that the libraries below cannot take."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import GenSegError


def printable(path: Path) -> str:
    """The path for a message: bytes that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def check_name(path: Path) -> None:
    """Check that SimpleITK takes the path; one that is not UTF-8 would end the whole process.

    Raises:
        GenSegError: if it does not.
    """
    if printable(path) != str(path):
        raise GenSegError(f"{printable(path)} has a name that is not UTF-8; rename it.")
    extension = re.search(r"\.(nii(\.gz)?|hdr|img)$", path.name, re.IGNORECASE)
    if extension and extension[0] not in (extension[0].lower(), extension[0].upper()) and not path.is_dir():
        raise GenSegError(
            f"{path} has an extension that mixes upper and lower case, which NIfTI does not allow; "
            f"rename it to end in {extension[0].lower()}."
        )
