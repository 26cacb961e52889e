"""Arrays in files: `.npz` of NumPy, or `.safetensors`, which programs in other languages write and read."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adapter_export.errors import FormatError, UsageError
from adapter_export.format.files import new_file, unreadable
from adapter_export.format.tensors import read_tensors, write_tensors

_SAFETENSORS = ".safetensors"
_NPZ = ".npz"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name.

    Raises:
        FileError: the file cannot be read.
        FormatError: it holds something else.
    """
    if path.suffix == _SAFETENSORS:
        return read_tensors(path)
    try:
        with path.open("rb") as file:  # NumPy leaves a file open that it cannot read
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("one array without a name")
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error) as error:
        raise FormatError(
            "is not an `.npz` of arrays",
            where=path,
            found=error,
            fix=f"write it with `numpy.savez(path, name=array)`, or give a `{_SAFETENSORS}` file",
        ) from error


def check_form(path: Path) -> None:
    """Refuse a name that does not say how arrays are to be written.

    Raises:
        UsageError: it does not.
    """
    if path.suffix not in (_NPZ, _SAFETENSORS):
        raise UsageError(
            "the form of a file of arrays is not known",
            found=f"`{path.name}`",
            expected=f"`{_NPZ}` or `{_SAFETENSORS}`",
        )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, force: bool) -> None:
    """Write arrays by name, in the form that the suffix says.

    Raises:
        OutputExistsError: there is a file, and `force` is not given.
        WriteError: the operating system refused.
    """
    with new_file(path, force=force) as temporary:
        if path.suffix == _SAFETENSORS:
            write_tensors(temporary, arrays)
        else:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
