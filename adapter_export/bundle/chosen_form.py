"""The form that `bench` found fastest on this machine: a bundle of the same base, and the provider that runs it.

The choice is a file beside each bundle that was measured, `NAME.form.json` for the bundle NAME, and never in a bundle:
it belongs to a machine. Specified in `docs/reference/format.md`.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.errors import FileError, FormatError, UsageError, within
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.records import SEMVER, NotNegative, Positive, Text, record_from_json, version_checked
from adapter_export.option import FormName
from adapter_export.providers import PROVIDERS, ProviderName, provider_named
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.words import argument, command, quoted

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest
    from adapter_export.runtime import Bundle

FORM_VERSION = "1.0.0"
"""Version of the format written, and the newest supported."""

MEASURE = command("bench(…, save_form=True)", "bench … --save-form")
"""The call that writes the file."""


@dataclass(frozen=True)
class FormRatio:
    """Time of a call of one shape.

    Attributes:
        rows: rows of the call.
        tokens: tokens per row.
        ratio: the time over that of the first form that was measured.
    """

    rows: Positive
    tokens: Positive
    ratio: NotNegative


@dataclass(frozen=True)
class MeasuredForm:
    """The recommended form of a bundle on one machine.

    Attributes:
        version: the version of this format. Readers reject another major version.
        bundle: the folder of the bundle to run, relative to the folder of this file; `/` separates its parts.
        provider: the provider to run it with.
        runtime: the library that ran it, with its version.
        processor: of the machine: its architecture and its name.
        times: of the calls that were measured, on one thread.
    """

    version: Annotated[str, SEMVER]
    bundle: Text
    provider: Text
    runtime: Text
    processor: Text
    times: tuple[FormRatio, ...]


@dataclass(frozen=True)
class ChosenForm:
    """A bundle, and the provider that runs it.

    Attributes:
        bundle: the bundle, or its folder.
        provider: the provider.
    """

    bundle: Bundle | Address
    provider: ProviderName


def form_file(folder: Path) -> Path:
    """Return the file beside a bundle that has its recommended form."""
    place = folder.resolve()
    return place.with_name(place.name + ".form.json")


def save_form(form: MeasuredForm, folder: Path) -> Path:
    """Write the recommended form of a bundle beside it, in place of an older one. Raises WriteError."""
    path = form_file(folder)
    with Output(path, force=True).file() as temporary:
        temporary.write_bytes(canonical_json(asdict(form)))
    return path


def relative_folder(chosen: Path, folder: Path) -> str:
    """Return the folder of the chosen bundle as the file beside `folder` names it."""
    return Path(os.path.relpath(chosen.resolve(), folder.resolve().parent)).as_posix()


def processor_here() -> str:
    """Return the architecture and the name of this machine's processor."""
    name = platform.processor()
    try:
        lines = read_bytes(Path("/proc/cpuinfo")).decode("utf-8", "replace").splitlines()
    except FileError:  # other systems than Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(filter(None, [platform.machine(), names[0] if names else name])) or "unknown"


def runtime_here(provider: ProviderName) -> str:
    """Return the library that runs a provider, with its version; `… not installed` without it."""
    library = PROVIDERS[provider].runtime
    if library == "onnxruntime":
        import onnxruntime  # noqa: PLC0415 - the package may have another name, such as onnxruntime-gpu

        return f"onnxruntime {onnxruntime.__version__}"
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"


def chosen_form(bundle: Bundle | Address, form: FormName = "auto", provider: ProviderName = "cpu") -> ChosenForm:
    """Return the form of a bundle that `bench` recommended here, or the bundle as given.

    ::

        form = chosen_form("bundle")
        session = ae.open_bundle(form.bundle).session(provider=form.provider)

    On another processor, or with another release of the runtime, the measurement says nothing: the bundle runs as
    given, with a `RuntimeWarning`.

    Args:
        bundle: the bundle, or its folder.
        form: `given` is the bundle itself, for `provider`.
        provider: the provider of the bundle as given.

    Raises:
        UsageError: `form` is `auto` and `provider` is named.
        FileError: no form was saved for the bundle, or its bundle is missing.
        FormatError: the file is damaged, or its bundle has another base or other adapters.
    """
    if form == "given":
        return ChosenForm(bundle, provider)
    if provider != "cpu":
        raise UsageError(
            argument("form", "auto") + " and " + argument("provider", provider) + " exclude each other",
            fix="remove one of them",
        )
    folder = folder_of(bundle)
    path = form_file(folder)
    if not path.exists():
        raise FileError("no form was measured for this bundle", where=path, fix="measure with " + MEASURE)
    measured = read_form(path)
    provider_named(measured.provider)
    name: ProviderName = next(name for name in PROVIDERS if name == measured.provider)
    for what, recorded, actual in (
        ("processor", measured.processor, processor_here()),
        ("runtime", measured.runtime, runtime_here(name)),
    ):
        if recorded != actual:
            text = f"{path} was measured with another {what} ({recorded}; here {actual}), so the bundle runs as given"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return ChosenForm(bundle, "cpu")
    chosen = folder.resolve().parent / measured.bundle
    if chosen != folder.resolve():
        _check_alike(folder, chosen, path)
    return ChosenForm(chosen, name)


def read_form(path: Path) -> MeasuredForm:
    """Read a recommended form.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file violates the format; `VersionError` is a subclass.
    """
    document: Any = read_json(path)
    with version_checked(document, FORM_VERSION, path), within(path):
        return record_from_json(MeasuredForm, document)


def _check_alike(folder: Path, chosen: Path, path: Path) -> None:
    """Raise FormatError unless the chosen bundle has the base and all adapters of the given one, by their sources."""
    ours, theirs = read_manifest(folder), read_manifest(chosen)
    if theirs.base != ours.base:
        raise FormatError(
            "the chosen form has another base",
            where=path,
            found=f"{theirs.base} in {chosen}",
            expected=ours.base,
            fix="measure again with " + MEASURE,
        )
    expected, actual = _sources(ours), _sources(theirs)
    if differing := [name for name, digests in expected.items() if actual.get(name) != digests]:
        raise FormatError(
            "the chosen form lacks adapters of the bundle, or has others of their names",
            where=path,
            found=f"{quoted(differing)} in {chosen}",
            expected=f"the adapters of {folder}",
            fix="add them to it with " + command("add(…)", "add …") + ", or measure again with " + MEASURE,
        )


def _sources(manifest: Manifest) -> Mapping[str, Collection[str]]:
    """Return the digests of the files that each adapter was built from, by its name."""
    return {
        record.name: {file.sha256 for file in manifest.files if file.path.startswith(f"{record.source}/")}
        for record in manifest.adapters
    }
