"""Rows of Hub datasets, loaded with `datasets` and cached as Parquet files."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from adapter_export.errors import DataError, UsageError
from adapter_export.plugins.hub.artifact import Remote, Source
from adapter_export.plugins.hub.fetch import Order, download_all, fetch_contents
from adapter_export.plugins.hub.huggingface import Hub
from adapter_export.plugins.hub.reference import DatasetReference
from adapter_export.plugins.hub.repository_files import verify_listing, write_listing
from adapter_export.reporting import Reporter
from adapter_export.safe_io.parsers import parsing
from adapter_export.words import quoted

_TABLES = ("csv", "json", "parquet", "arrow", "text")
"""Loaders of `datasets` for tables, excluding those that unpack archives or decode media."""


def fetch_table(reference: DatasetReference, reporter: Reporter) -> tuple[str, Path]:
    """Return the commit of a dataset, and a cached file with its rows.

    For errors see `fetch` and `_Rows.take`.
    """
    order = Order(reference, _Rows(reference), reporter)
    pin, folder = fetch_contents(order, lambda: nullcontext(Hub(reference)))
    return pin, folder / "rows" / _file_name(reference)


def _file_name(reference: DatasetReference) -> str:
    if reference.file is not None:
        return reference.file.rpartition("/")[2]
    parts = (reference.repository.rpartition("/")[2], reference.subset, reference.split)
    return f"{re.sub('[^A-Za-z0-9_.]+', '-', '-'.join(filter(None, parts)))}.parquet"


@dataclass(frozen=True)
class _Rows:
    """The rows of a split as Parquet, or an unchanged table of the repository."""

    reference: DatasetReference

    @property
    def suffix(self) -> str:
        """Suffix of the cache folder, which identifies the rows."""
        rows = str(replace(self.reference, revision=None))
        return f"-{hashlib.sha256(rows.encode()).hexdigest()[:16]}"

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Write the file, and its listing.

        Raises:
            UsageError: the dataset has no such file.
            DataError: the dataset has no tables, or `datasets` cannot load the subset or split.
        """
        place = folder / "rows"
        place.mkdir()
        if self.reference.file is None:
            self._write_split(remote.pin, place / _file_name(self.reference), order)
        else:
            if self.reference.file not in remote.files:
                actual = quoted(sorted(remote.files)[:5])
                raise UsageError("the dataset has no such file", where=self.reference, found=actual)
            download_all(source, [remote.files[self.reference.file]], folder, order)
            (folder / self.reference.file).replace(place / _file_name(self.reference))
        write_listing(folder, place)

    def _write_split(self, commit: str, path: Path, order: Order) -> None:
        where = self.reference
        order.reporter.step(f"loading {where}")
        with _quiet(), parsing(lambda reason: DataError("`datasets` cannot load it", where=where, found=reason)):
            builder: Any = datasets.load_dataset_builder(where.repository, where.subset, revision=commit)
            kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _TABLES:
            raise DataError("is not a dataset of tables", where=where, found=kind, expected=quoted(_TABLES))
        with _quiet(), parsing(lambda reason: DataError("`datasets` cannot load it", where=where, found=reason)):
            builder.download_and_prepare()
            builder.as_dataset(split=where.split).to_parquet(path)

    def verify(self, folder: Path) -> None:
        """Compare the file with the listing."""
        verify_listing(folder)

    def accept(self, folder: Path) -> None:
        """Accept any contents."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and warnings of the libraries."""
    log, bars = logging.getLogger("huggingface_hub"), not datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
