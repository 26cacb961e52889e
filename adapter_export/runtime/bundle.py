"""A bundle on disk: verified when it is opened, then the source of sessions."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnxruntime as ort

from adapter_export.errors import HashError, RequestError, UsageError, VersionError, argument
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest, verify_files
from adapter_export.reading.files import read_bytes
from adapter_export.runtime.adapters import Adapters
from adapter_export.runtime.graphs import Graphs, Optimization, Provider, open_session
from adapter_export.runtime.media import WORDS, MediaReader, media_record
from adapter_export.runtime.session import Session
from adapter_export.runtime.texts import TextReader
from adapter_export.text import Tokenizer

RESIDENT = 64
"""How many adapters a session keeps in place by default."""


@dataclass(frozen=True)
class Bundle:
    """An exported base with its adapters.

    Attributes:
        folder: where it lies.
        manifest: what is in it.
        verified: whether its files were compared with their hashes.
    """

    folder: Path
    manifest: Manifest
    verified: bool

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True, expect: str | None = None) -> Bundle:
        """Open a bundle.

        Args:
            folder: the folder that `adapter-export build` made.
            verify: compare every file with its hash. Without it, damage goes unseen: most damaged weights run.
            expect: the digest that the bundle must have: the sha256 of its manifest, which has those of all other
                files. `adapter-export inspect` shows it.

        Raises:
            FileError: a file is missing, or a link leads out of the folder.
            FormatError: the manifest breaks the format, or a file is damaged; `HashError` and `VersionError` are kinds
                of it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, expect=expect)
        found, needed = _release(ort.__version__), _release(manifest.minimum_onnxruntime)
        if found < needed:
            raise VersionError(
                "needs a newer ONNX Runtime",
                where=folder,
                found=f"onnxruntime {ort.__version__}",
                expected=f"{manifest.minimum_onnxruntime} or newer",
                fix="run `pip install --upgrade onnxruntime`",
            )
        if verify:
            verify_files(manifest, folder)
        return cls(folder, manifest, verify)

    def session(
        self,
        *,
        provider: Provider = "cpu",
        fallback: Provider | None = None,
        optimization: Optimization = "all",
        threads: int | None = None,
        on_demand: bool = False,
        resident: int = RESIDENT,
    ) -> Session:
        """Open a session with all adapters of the bundle loaded.

        Args:
            provider: where to compute; never anywhere else, but for `fallback`.
            fallback: where to compute if `provider` is not available; a `RuntimeWarning` and `Session.provider` say so.
            optimization: how far ONNX Runtime may rewrite the graph.
            threads: how many threads one operation may use.
            on_demand: read the file of an adapter when a call needs it, instead of now: for thousands of adapters.
            resident: how many adapters that are not in the bundle's bank a mixed batch finds in place, and how many of
                those that are read on demand stay in memory; the least recently used one makes room.

        Raises:
            UsageError: the provider is not available here, or `resident` is below 1.
            FormatError: a file was damaged since the bundle was opened, or does not fit the graph.
        """
        if resident < 1:
            raise UsageError(
                "a session needs room for an adapter", found=f"`resident` {resident}", expected="1 or more"
            )
        try:
            graphs = self._graphs(provider, optimization, threads)
        except UsageError as error:
            if fallback is None:
                raise
            graphs = self._graphs(fallback, optimization, threads)
            warnings.warn(f"runs on `{fallback}`: {error}", RuntimeWarning, stacklevel=2)
        return self.session_on(graphs, on_demand=on_demand, resident=resident)

    def session_on(self, graphs: Graphs, *, on_demand: bool = False, resident: int = RESIDENT) -> Session:
        """Open a session as `session` does, on graphs that are open."""
        adapters = Adapters(self.manifest, graphs.provider, resident)
        for record in self.manifest.adapters:
            adapters.add_built(record, self.folder, self._hashes.get(record.onnx_adapter), on_demand=on_demand)
        return Session(graphs, adapters, resident)

    def texts(self, session: Session | None = None) -> TextReader:
        """Return what reads texts for the adapters of the bundle, and answers them.

        Args:
            session: what runs; a new one if not given.

        Raises:
            RequestError: the bundle has no tokenizer.
            FileError, BaseModelError: the tokenizer cannot be read.
            MissingExtraError: the tokenizers library is not installed.
        """
        record = self.manifest.text
        if record is None:
            raise RequestError(
                "the bundle has no tokenizer, so it cannot read texts",
                where=self.folder,
                found=None if self.manifest.media is None else f"a processor of {WORDS[self.manifest.media.medium]}s",
                fix=f"give arrays, or build it again with {argument('tokenizer')}",
            )
        text = self._read(record.tokenizer).decode("utf-8", "replace")
        return TextReader(reader(text, self.manifest), self.manifest, session or self.session())

    def images(self, session: Session | None = None) -> MediaReader:
        """Return what reads pictures for the adapters of the bundle, and answers them.

        Args:
            session: what runs; a new one if not given.

        Raises:
            RequestError: the bundle does not say how a picture becomes its input, or says what nothing here can do.
        """
        return MediaReader(media_record(self.manifest, "image", self.folder), self.manifest, session or self.session())

    def audio(self, session: Session | None = None) -> MediaReader:
        """Return what reads clips, WAV files, for the adapters of the bundle, and answers them; else as `images`."""
        return MediaReader(media_record(self.manifest, "audio", self.folder), self.manifest, session or self.session())

    def _graphs(self, provider: Provider, optimization: Optimization, threads: int | None) -> Graphs:
        def open_file(path: str) -> ort.InferenceSession:
            return open_session(self._read(path), provider, optimization, threads, folder=self.folder)

        return Graphs(self.manifest, provider, open_file)

    @cached_property
    def _hashes(self) -> Mapping[str, str]:
        """The sha256 of each file; none where nobody asked for it."""
        return {file.path: file.sha256 for file in self.manifest.files} if self.verified else {}

    def _read(self, path: str) -> bytes:
        """Read a file of the bundle; `HashError` if it was changed since the bundle was opened."""
        data = read_bytes(self.folder / path)
        expected = self._hashes.get(path)
        if expected is not None and (found := hashlib.sha256(data).hexdigest()) != expected:
            fix = "open the bundle again; never write into the files of one that is in use"
            raise HashError(self.folder / path, found=found, expected=expected, fix=fix)
        return data


def reader(text: str, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a bundle that has one, from the contents of its file; errors as `Tokenizer.from_json`."""
    assert manifest.max_tokens is not None  # or the manifest could not have been read
    return Tokenizer.from_json(text, manifest.max_tokens, manifest.fit)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
