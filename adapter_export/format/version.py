"""Versions of file formats: which ones a release reads, and how it says no."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from adapter_export.errors import FormatError, GraphError, VersionError

_SEMVER = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")


@contextmanager
def version_checked(document: object, supported: str, where: object) -> Iterator[None]:
    """Check a document's version, then let the block read the document.

    A newer minor version may hold keys, ops and values that this release does not know: where the block stumbles over
    such a document, the error says that the version is the likely reason.

    Args:
        document: parsed JSON.
        supported: the version that this release writes, `major.minor.patch`.
        where: the file, for messages.

    Raises:
        FormatError: there is no version.
        VersionError: another major version, or a newer minor version with something that this release does not know.
    """
    found, known = _version_of(document, where), _numbers(supported)
    if found[0] != known[0]:
        raise _version_error("is of a format version that this release does not read", where, found, supported, "")
    try:
        yield
    except (FormatError, GraphError) as error:
        if found[1] <= known[1]:
            raise
        what = "is of a newer format version and holds what this release does not know"
        reason = f" with, in {error.where}, {error.found or error.what}"
        raise _version_error(what, where, found, supported, reason) from error


def _version_error(what: str, where: object, found: tuple[int, ...], supported: str, reason: str) -> VersionError:
    newer = found > _numbers(supported)
    return VersionError(
        what,
        where=where,
        found=f"version {'.'.join(map(str, found))}{reason}",
        expected=f"{supported.partition('.')[0]}.x.x, at most {supported}",
        fix="run `pip install --upgrade adapter-export`" if newer else "write it again with this release",
    )


def _version_of(document: object, where: object) -> tuple[int, ...]:
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, str) or not _SEMVER.fullmatch(version):
        raise FormatError(
            "states no format version",
            where=where,
            found="nothing" if version is None else f"`{version}`",
            expected='an object with a `version` such as "1.0.0"',
            fix="check that this is the right file",
        )
    return _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
