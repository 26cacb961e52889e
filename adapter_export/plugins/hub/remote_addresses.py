"""Addresses with the schemes `hf` and `oci`: their files, fetched from the Hub, from its datasets or a registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapter_export.address import Contents, Located
from adapter_export.errors import MissingExtraError, NoArtifactError, UsageError
from adapter_export.plugins.hub.reference import HubReference, parse_dataset, parse_reference
from adapter_export.reporting import Reporter

SCHEMES = ("hf", "oci", "http", "https")
"""Schemes of references, and those of web pages, which are refused with the reference to pass instead."""


def fetch_located(address: str, reference: str, contents: Contents, reporter: Reporter) -> Located:
    """Return the local files of a reference.

    Args:
        address: the address as passed.
        reference: the reference, with its scheme.
        contents: the expected contents.
        reporter: receives the steps of a download.

    Raises:
        UsageError: the reference is invalid, or has other contents.
        MissingExtraError: the libraries of the extra `hub` or `data` are not installed.
        RemoteError: the hub or registry rejects the request.
        InputError: the contents are missing or damaged.
    """
    if contents == "table":
        dataset = parse_dataset(reference)
        with _require("data", "a dataset of the Hub"):
            from adapter_export.plugins.hub.dataset_rows import fetch_table  # noqa: PLC0415 - an extra
        pin, path = fetch_table(dataset, reporter)
        return Located(address, path, str(dataset.pinned(pin)))
    require_hub()
    from adapter_export.plugins.hub.fetch import fetch_all  # noqa: PLC0415 - an extra

    if contents == "artifact" or contents == "any":
        try:
            fetched = fetch_all(reference, reporter=reporter)
        except NoArtifactError:
            if contents == "artifact":
                raise
            return fetch_located(address, reference, "model", reporter)
        return Located(address, fetched.path, fetched.pinned)
    repository = parse_reference(reference)
    if not isinstance(repository, HubReference):
        fix = "pass a Hub id or a path"
        raise UsageError("registries contain only bundles and adapters of this package", where=repository, fix=fix)
    from adapter_export.plugins.hub.repository_files import fetch_files  # noqa: PLC0415 - an extra

    pin, path = fetch_files(repository, contents, reporter)
    return Located(address, path, str(repository.pinned(pin)))


def require_hub() -> None:
    """Import the libraries for hubs and registries.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    with _require("hub", "a hub or a registry"):
        import httpx2  # noqa: F401, PLC0415 - an extra
        import huggingface_hub  # noqa: F401, PLC0415 - an extra


@contextmanager
def _require(extra: str, needed_for: str) -> Iterator[None]:
    """Raise MissingExtraError if the block cannot import a library."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), extra=extra, needed_for=needed_for) from error
