"""Bundles on disk: verified on opening, then the source of sessions."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnxruntime as ort

from adapter_export.errors import FileError, HashError, RequestError, UsageError, VersionError, moved
from adapter_export.format.files import cache_folder
from adapter_export.format.generation import parse_chat_templates
from adapter_export.format.manifest import FileRecord, Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE, manifest_bytes, open_whole, read_manifest, verify_files
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.providers import ProviderName, provider_named
from adapter_export.runtime.answerer import Reader
from adapter_export.runtime.generation.chat import ChatRenderer, no_template
from adapter_export.runtime.generation.text_writer import CONFIG_FILE, TextWriter, end_tokens
from adapter_export.runtime.generation.transcriber import Transcriber, transcriber_of
from adapter_export.runtime.graphs import Graphs, OpenGraph, Optimization, OrtGraph, open_session
from adapter_export.runtime.loaded_adapters import Adapters
from adapter_export.runtime.media_reader import MediaReader, media_record
from adapter_export.runtime.openvino_graph import open_openvino
from adapter_export.runtime.self_check import check_session
from adapter_export.runtime.session import Session
from adapter_export.runtime.text_reader import TextReader
from adapter_export.safe_io.private_folder import PrivateFolder
from adapter_export.safe_io.regular_files import copy_hashed, read_bytes
from adapter_export.safe_io.shared_copies import copy_shared
from adapter_export.safe_io.temporary import remove_abandoned
from adapter_export.tables import Described
from adapter_export.text import Tokenizer
from adapter_export.words import argument

RESIDENT = 64
"""Default number of adapters that a session keeps in memory."""


def copy_verified(
    manifest: Manifest, folder: Path, paths: Collection[str], otherwise: str = "", *, rehash: bool = False
) -> PrivateFolder:
    """Compare the files of a bundle with their SHA-256, and copy some of them: the very bytes that were compared.

    Copies of large files are shared with other processes of the user (`copy_shared`), unless caching is off.

    Args:
        manifest: of the bundle.
        folder: of the bundle.
        paths: files to copy.
        otherwise: a second remedy for the message if there is no room.
        rehash: compare files that are unchanged since their last comparison, too.

    Raises:
        FileError: there is no room for the copies, or as `verify_files`.
        FormatError: as `verify_files`.
    """

    def copy_file(path: Path, copy: Path, record: FileRecord) -> str:
        if cache_folder() is None:
            return copy_hashed(path, copy, record.bytes)
        return copy_shared(path, copy, record.bytes, record.sha256, rehash=rehash)

    remove_abandoned()
    try:
        private = PrivateFolder()
        verify_files(manifest, folder, copied=paths, into=private.path, copy_file=copy_file)
        # last, when all files that it lists are verified
        (private.path / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))
    except OSError as error:
        needed = sum(file.bytes for file in manifest.files if file.path in paths)
        raise FileError(
            f"no room for a private copy of the bundle's files ({error.strerror or error})",
            where=folder,
            found=error.filename,
            expected=f"{needed / 1e6:,.1f} MB in the temporary folder: `TMPDIR`, else /var/tmp",
            fix="; ".join(filter(None, ["set `TMPDIR` to a folder with room", otherwise])),
        ) from error
    return private


def check_release(manifest: Manifest, folder: Path) -> None:
    """Raise `VersionError` if a bundle needs a newer ONNX Runtime."""
    installed, needed = _release(ort.__version__), _release(manifest.minimum_onnxruntime)
    if installed < needed:
        raise VersionError(
            "requires a newer ONNX Runtime",
            where=folder,
            found=f"onnxruntime {ort.__version__}",
            expected=f"{manifest.minimum_onnxruntime} or newer",
            fix="run `pip install --upgrade onnxruntime`",
        )


@dataclass(frozen=True, repr=False)
class Bundle(Described):
    """An exported base with its adapters.

    Attributes:
        folder: its location.
        manifest: its contents.
        verified: whether its files were compared with their SHA-256.
    """

    folder: Path
    manifest: Manifest
    verified: bool
    _private: PrivateFolder | None = field(default=None, repr=False, compare=False)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        names = [record.name for record in self.manifest.adapters]
        return {"folder": self.folder, "adapters": names, "head": self.manifest.head, "verified": self.verified}

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True, expect: str | None = None, copy: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            folder: written by `adapter-export build`.
            verify: compare every file with its SHA-256. Without it, most damaged weights run unnoticed. A large file
                that is unchanged since this user last opened it is not read again.
            expect: the digest of the bundle, the SHA-256 of its manifest, which contains those of all other files.
                `adapter-export inspect` shows it.
            copy: run from a private copy in a temporary folder, whose large files all processes of the user share.
                The copied bytes are the verified ones, and later writes into the bundle have no effect. Without it, or
                without `verify`, weights are mapped from the bundle: for read-only folders, as in a container.

        Raises:
            FileError: a file is missing, a link leads out of the folder, or there is no room for the copy.
            FormatError: the manifest is invalid, or a file is damaged; `HashError` and `VersionError` are subclasses.
        """
        place = Path(folder)

        def open_listed(manifest: Manifest) -> Bundle:
            check_release(manifest, place)
            if not verify:
                return cls(place, manifest, False)
            adapters = {record.onnx_adapter for record in manifest.adapters}
            # what sessions read: graphs and weights at the top, and adapters; not golden data or sources
            run = [file.path for file in manifest.files if "/" not in file.path or file.path in adapters]
            otherwise = "if the bundle is read-only, open it with `Bundle.open(…, copy=False)`"
            return cls._verify_and_copy(place, manifest, run if copy else None, otherwise)

        return open_whole(place, open_listed, expect=expect)

    @classmethod
    def open_to_check(cls, folder: Path, *, expect: str | None = None, copy: bool = True) -> Bundle:
        """Open a bundle with all of its files, each hashed now, for any version of ONNX Runtime.

        Args:
            folder: of the bundle.
            expect: as in `open`.
            copy: keep a private copy of every file. Not needed by callers that have locked the bundle or run nothing.

        Raises:
            FileError, FormatError: it cannot be read, its files do not match their SHA-256, or there is no room.
        """

        def open_listed(manifest: Manifest) -> Bundle:
            paths = [file.path for file in manifest.files]
            return cls._verify_and_copy(folder, manifest, paths if copy else None, rehash=True)

        return open_whole(folder, open_listed, expect=expect)

    @classmethod
    def _verify_and_copy(
        cls,
        folder: Path,
        manifest: Manifest,
        copied: Collection[str] | None,
        otherwise: str = "",
        *,
        rehash: bool = False,
    ) -> Bundle:
        """Verify every file and copy some; other arguments as in `copy_verified`."""
        if copied is None:
            verify_files(manifest, folder)
            return cls(folder, manifest, True)
        return cls(folder, manifest, True, copy_verified(manifest, folder, copied, otherwise, rehash=rehash))

    def reload(self, *, expect: str | None = None) -> Bundle:
        """Open the bundle that is in the folder now, or return this one if nothing changed.

        Open sessions keep running on this bundle. The new one is consistent even while a writer replaces the folder:
        every file is compared with the new manifest.

        Args:
            expect: the digest of the new bundle.

        Raises:
            FileError, FormatError: as `open`; this bundle stays usable.
        """
        if read_manifest(self.folder, expect=expect) == self.manifest:
            return self
        return Bundle.open(self.folder, verify=self.verified, expect=expect, copy=self._private is not None)

    def session(
        self,
        *,
        provider: ProviderName = "cpu",
        fallback: ProviderName | None = None,
        optimization: Optimization = "all",
        threads: int | None = None,
        packed: bool = True,
        on_demand: bool = False,
        resident: int = RESIDENT,
        prefix_bytes: int = 0,
    ) -> Session:
        """Open a session with all adapters of the bundle loaded.

        Providers other than `cpu` and `cuda` compute the bundle's golden data first, and the session opens only if the
        results are within their budget.

        Args:
            provider: the only place to compute, except for `fallback`.
            fallback: where to compute if `provider` is not available or the bundle has no graph for it, with a
                `RuntimeWarning`. `Session.provider` is the one that computes.
            optimization: graph optimization level of ONNX Runtime.
            threads: threads of one operation. Default: the runtime's choice.
            packed: let ONNX Runtime copy weights into the layout of its kernels. Without it, processes share the memory
                of the mapped file, and a call with few rows takes up to 1.5 times as long.
            on_demand: read the file of an adapter when a call needs it: for thousands of adapters.
            resident: adapters outside the bundle's bank that mixed batches keep in its table, and on-demand adapters
                kept in memory; the least used one is evicted.
            prefix_bytes: size of a cache of activations below the first adapter, keyed by input row, so that a
                repeated row is computed from there on, with any adapter. Needs the graph `fanout`, which then computes
                all calls.

        Raises:
            UsageError: the provider is not available here or has no setting of this name, the bundle has no graph that
                it may run, `resident` is below 1, or `prefix_bytes` has no graph.
            FormatError: a file was damaged after the bundle was opened, or does not fit the graph; or the provider's
                results are not those of the golden data.
            FileError: the golden data cannot be read.
        """
        if resident < 1:
            raise UsageError("`resident` must be greater than 0", found=resident)
        try:
            graphs = self.graphs(provider, optimization, threads, packed)
        except UsageError as error:
            if fallback is None:
                raise
            graphs = self.graphs(fallback, optimization, threads, packed)
            warnings.warn(f"runs on `{fallback}`: {error}", RuntimeWarning, stacklevel=2)
        session = self.session_on(graphs, on_demand=on_demand, resident=resident, prefix_bytes=prefix_bytes)
        if graphs.row.proved:
            check_session(self, session)
        return session

    def session_on(
        self, graphs: Graphs, *, on_demand: bool = False, resident: int = RESIDENT, prefix_bytes: int = 0
    ) -> Session:
        """Open a session on open graphs, without golden data; other arguments as in `session`."""
        private = None if self._private is None else self._private.path
        adapters = Adapters(self.manifest, graphs.provider, resident, private)
        with self.named():
            for record in self.manifest.adapters:
                adapters.add_built(record, self.home, self._hashes.get(record.onnx_adapter), on_demand=on_demand)
        return Session(graphs, adapters, resident, prefix_bytes)

    def texts(self, session: Session | None = None) -> TextReader:
        """Return the reader of texts, which tokenizes and answers them.

        Args:
            session: computes the answers. Default: a new session.

        Raises:
            RequestError: the bundle has no tokenizer.
            FileError, BaseModelError: the tokenizer cannot be read.
            MissingExtraError: the tokenizers library is not installed.
        """
        if self.manifest.text is None:
            raise RequestError(
                "the bundle has no tokenizer",
                where=self.folder,
                found=None if self.manifest.media is None else f"a processor of {self.manifest.media.modality.word}s",
                fix="pass arrays, or build it again with " + argument("tokenizer"),
            )
        return TextReader(self.tokenizer(), self.manifest, session or self.session())

    def files(self, medium: str, session: Session | None = None) -> MediaReader:
        """Return the reader of files of a modality, which preprocesses and answers them.

        Args:
            medium: the modality, `image` or `audio`.
            session: computes the answers. Default: a new session.

        Raises:
            RequestError: the bundle has no preprocessing record for such files, or an unsupported one.
        """
        return MediaReader(media_record(self.manifest, medium, self.folder), self.manifest, session or self.session())

    def writer(self, session: Session | None = None) -> TextWriter:
        """Return the generator of texts, for a bundle of a language model with a cache.

        Args:
            session: computes the logits. Default: a new session.

        Raises:
            RequestError: the bundle has no tokenizer, or does not generate.
            FileError, FormatError, BaseModelError: its tokenizer or `genai_config.json` cannot be read.
            MissingExtraError: the tokenizers library is not installed.
        """
        opened = session or self.session()
        config = CONFIG_FILE in {file.path for file in self.manifest.files}
        recorded = () if self.manifest.generation is None else self.manifest.generation.end
        ends = end_tokens(self._read(CONFIG_FILE), self.folder / CONFIG_FILE) if config else recorded
        chat = None if self.manifest.chat is None else self.chat()
        return TextWriter(opened.decoder, self.texts(opened).tokenizer, ends, chat, self.folder)

    def transcriber(self, session: Session | None = None) -> Transcriber:
        """Return the generator of the texts of files, for a bundle of a speech model with a cache.

        Args:
            session: computes the logits. Default: a new session.

        Raises:
            RequestError: the bundle has no tokenizer or no known preprocessing, or does not write texts of files.
            FileError, FormatError, BaseModelError: its tokenizer cannot be read.
            MissingExtraError: the tokenizers library is not installed.
        """
        opened = session or self.session()
        transcriber_of(opened.decoder, self.manifest.media, None, self.folder)  # before the tokenizer is read
        return transcriber_of(opened.decoder, self.manifest.media, self.texts(opened).tokenizer, self.folder)

    def chat(self) -> ChatRenderer:
        """Return the renderer of conversations as prompts.

        Raises:
            RequestError: the bundle has no chat template.
            FileError, FormatError: its file cannot be read, or does not match the manifest.
        """
        record = self.manifest.chat
        if record is None:
            raise no_template(self.folder)
        with self.named():
            where = self.home / record.templates
            templates = parse_chat_templates(self._read(record.templates), where)
            if templates.digest != record.digest:
                raise HashError(where, found=templates.digest, expected=record.digest)
        return ChatRenderer(templates, record)

    def reader(self, kind: str, session: Session | None = None) -> Reader:
        """Return the reader for a task's input, such as `pair` or `image`; errors as of `texts` and `files`."""
        return self.files(kind, session) if kind in FILE_MODALITIES else self.texts(session)

    def graphs(
        self,
        provider: ProviderName = "cpu",
        optimization: Optimization = "all",
        threads: int | None = None,
        packed: bool = True,
    ) -> Graphs:
        """Open the graphs of the bundle, without golden data; arguments and errors as of `session`."""
        row = provider_named(provider)
        if row.runtime == "openvino" and (optimization != "all" or not packed):
            setting = f"optimization level `{optimization}`" if packed else "weights that are not packed"
            raise UsageError(f"a setting of ONNX Runtime, which `{provider}` lacks", found=setting, fix="leave it out")

        def open_file(path: str) -> OpenGraph:
            if row.runtime == "openvino":
                with self.named():
                    self._read(path)  # compares its hash
                    return open_openvino(self.home / path, provider, threads)
            session = self.open_graph(
                path, provider=provider, optimization=optimization, threads=threads, packed=packed
            )
            return OrtGraph(session, row.memory, shares_arena=provider == "cpu")

        return Graphs(self.manifest, provider, open_file)

    def open_graph(
        self,
        path: str,
        *,
        provider: ProviderName = "cpu",
        optimization: Optimization = "all",
        threads: int | None = None,
        packed: bool = True,
    ) -> ort.InferenceSession:
        """Open one graph of the bundle in ONNX Runtime; arguments as in `session`.

        Raises:
            UsageError: the provider is not available here.
            FormatError: ONNX Runtime cannot open the graph, or its file was damaged after the bundle was opened.
        """
        settings = {} if packed else {"session.disable_prepacking": "1"}
        with self.named():
            return open_session(
                self._read(path), provider, optimization, threads, where=self.home / path, settings=settings
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of a bundle that has one.

        Raises:
            FileError, BaseModelError: it cannot be read.
            MissingExtraError: the tokenizers library is not installed.
        """
        record = self.manifest.text
        assert record is not None
        return reader(self._read(record.tokenizer).decode("utf-8", "replace"), self.manifest)

    def named(self) -> AbstractContextManager[None]:
        """Name the files of `folder` in errors, instead of those of the private copy."""
        return moved(self.home, self.folder)

    @property
    def home(self) -> Path:
        """The folder from which graphs and adapters are read: the private copy, if there is one."""
        return self.folder if self._private is None else self._private.path

    @cached_property
    def _hashes(self) -> Mapping[str, str]:
        """SHA-256 of each file that others may change; empty without `verify`."""
        needed = self.verified and self._private is None
        return {file.path: file.sha256 for file in self.manifest.files} if needed else {}

    def _read(self, path: str) -> bytes:
        """Read a file of the bundle; `HashError` if it changed after the bundle was opened."""
        data = read_bytes(self.home / path)
        expected = self._hashes.get(path)
        if expected is not None and (digest := hashlib.sha256(data).hexdigest()) != expected:
            fix = "open the bundle again; never write into the files of a bundle in use"
            raise HashError(self.home / path, found=digest, expected=expected, fix=fix)
        return data


def reader(text: str, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a bundle from the contents of its file; errors as of `Tokenizer.from_json`."""
    assert manifest.max_tokens is not None  # checked when the manifest was read
    return Tokenizer.from_json(text, manifest.max_tokens, manifest.fit)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
