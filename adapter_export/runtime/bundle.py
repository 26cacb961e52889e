"""A bundle on disk: verified when it is opened, then the source of sessions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from adapter_export.errors import HashError, VersionError
from adapter_export.format.files import read_bytes
from adapter_export.format.inventory import verify_files
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.runtime.loaded import Claim
from adapter_export.runtime.providers import Optimization, Provider, open_session
from adapter_export.runtime.session import Session


@dataclass(frozen=True)
class Bundle:
    """An exported base with its adapters.

    Attributes:
        folder: where it lies.
        manifest: what is in it.
        verified: whether its files were held against their hashes.
    """

    folder: Path
    manifest: Manifest
    verified: bool

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            folder: the folder that `adapter-export build` made.
            verify: hold every file against its hash. Without it, damage goes unseen: most damaged weights run.

        Raises:
            FileError: a file is missing, or a link leads out of the folder.
            FormatError: the manifest breaks the format, or a file is damaged; `HashError` and `VersionError` are kinds
                of it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        _check_runtime(manifest, folder)
        if verify:
            verify_files(manifest, folder)
        return cls(folder, manifest, verify)

    def session(
        self, *, provider: Provider = "cpu", optimization: Optimization = "all", threads: int | None = None
    ) -> Session:
        """Open a session with all adapters of the bundle loaded.

        Args:
            provider: where to compute; never anywhere else.
            optimization: how far ONNX Runtime may rewrite the graph.
            threads: how many threads one operation may use.

        Raises:
            UsageError: the provider is not available here.
            FormatError: a file was damaged since the bundle was opened, or does not fit the graph.
        """
        path = self.folder / self.manifest.graphs["slots"]
        session = Session(open_session(path, provider, optimization, threads), self.manifest, provider)
        for record in self.manifest.adapters:
            file = self.folder / record.onnx_adapter
            claim = Claim(record.labels, record.task, record.output)
            session.load_bytes(record.name, self._adapter_bytes(record), claim, where=file)
        return session

    def _adapter_bytes(self, record: AdapterRecord) -> bytes:
        """Read once: what is hashed is what is used."""
        path = self.folder / record.onnx_adapter
        data = read_bytes(path)
        found = hashlib.sha256(data).hexdigest()
        expected = next(file.sha256 for file in self.manifest.files if file.path == record.onnx_adapter)
        if self.verified and found != expected:
            raise HashError(path, found=found, expected=expected)
        return data


def _check_runtime(manifest: Manifest, folder: Path) -> None:
    found, needed = _release(ort.__version__), _release(manifest.minimum_onnxruntime)
    if found < needed:
        raise VersionError(
            "needs a newer ONNX Runtime",
            where=folder,
            found=f"onnxruntime {ort.__version__}",
            expected=f"{manifest.minimum_onnxruntime} or newer",
            fix="run `pip install --upgrade onnxruntime`",
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
