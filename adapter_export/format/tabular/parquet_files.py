"""Reader of Parquet files, with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, FormatError, MissingExtraError
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular

PARQUET = (".parquet", ".pq")
"""Suffixes of Parquet files."""

_FEATURES = b"huggingface"
"""Metadata key of `datasets` for column types, with the names of classes, whose cells are numbers."""


def columns_of_parquet(path: Path) -> tuple[str, ...]:
    """Return the names of the columns.

    Raises:
        FileError: the file cannot be read.
        DataError: the file is not Parquet.
        MissingExtraError: pyarrow is not installed.
    """
    with _open_parquet(path) as file:
        return tuple(file.schema_arrow.names)


def count_of_parquet(path: Path) -> int:
    """Return the number of rows; for errors see `columns_of_parquet`."""
    with _open_parquet(path) as file:
        return int(file.metadata.num_rows)


def parquet_rows(path: Path, start: int, end: int | None, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the rows from `start` to `end`, with the named columns that exist.

    Only row groups with such rows are read, one batch at a time. Classes stored as numbers by `datasets` become names;
    -1, a missing class, becomes `None`. For errors see `columns_of_parquet`.
    """
    with _open_parquet(path) as file:
        end = file.metadata.num_rows if end is None else end
        present = [name for name in columns if name in file.schema_arrow.names]
        groups, before, skipped = list[int](), 0, 0
        for group in range(file.metadata.num_row_groups):
            after = before + file.metadata.row_group(group).num_rows
            if before < end and after > start:
                groups.append(group)
            elif after <= start:
                skipped = after
            before = after
        left, classes = end - start, _class_names(file.schema_arrow.metadata, path)
        skip = start - skipped
        for batch in file.iter_batches(row_groups=groups, columns=present) if present else ():
            rows = batch.slice(skip, left).to_pylist()
            skip = max(0, skip - batch.num_rows)
            left -= len(rows)
            for row in rows:
                yield {name: _class(value, classes.get(name)) for name, value in row.items()}
            if not left:
                return
        yield from ({} for _ in range(0 if present else left))


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="data", needed_for="Parquet") from error

    def broken(reason: str) -> DataError:
        return DataError("cannot be read as Parquet", where=path, found=reason)

    with open_regular(path) as file, parsing(broken):
        yield pyarrow.parquet.ParquetFile(file)


def _class_names(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, Sequence[str]]:
    """Return the class names of each column with class numbers, or lists of them, as for tokens."""
    try:
        document: Any = parse_json((metadata or {}).get(_FEATURES, b"{}"), path)
        features = {name: _inner(feature) for name, feature in document["info"]["features"].items()}
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if feature["_type"] == "ClassLabel"
        }
    except (FormatError, LookupError, TypeError, AttributeError):
        return {}  # another program's metadata


def _inner(feature: Any) -> Any:
    """Return the element type of a list, which versions of `datasets` write in three ways."""
    if isinstance(feature, list):
        return _inner(feature[0])
    return _inner(feature["feature"]) if "feature" in feature else {"_type": None, **feature}


def _class(value: object, names: Sequence[str] | None) -> object:
    if names is not None and isinstance(value, list):
        return [_class(element, names) for element in value]
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None if value == -1 else value
