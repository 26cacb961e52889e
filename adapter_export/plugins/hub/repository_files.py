"""Files of a model or adapter in a Hub repository: safetensors, JSON and tokenizers, never pickles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adapter_export.errors import AdapterError, BaseModelError, FormatError, InputError, moved
from adapter_export.format.files import canonical_json
from adapter_export.format.model_config import ADAPTER_CONFIG, named_base
from adapter_export.plugins.hub.artifact import HEADS, Remote, RemoteFile, Source, check_bounds, files_by_path
from adapter_export.plugins.hub.fetch import Order, download_all, fetch_contents
from adapter_export.plugins.hub.huggingface import Hub
from adapter_export.plugins.hub.reference import HubReference
from adapter_export.reporting import Reporter
from adapter_export.safe_io.documents import MOST_JSON_BYTES, read_json
from adapter_export.safe_io.regular_files import sha256_of
from adapter_export.words import command, quoted, visible

Wanted = Literal["model", "adapter", "tokenizer"]
"""A transformers or sentence-transformers model, a PEFT or AdapterHub adapter, or a tokenizer."""

_LISTING = ".files.json"  # repository names do not start with a dot
_TOKENIZER = "tokenizer.json"
_TEXTS = (".json", ".txt", ".model", ".spm", ".jinja")
"""Suffixes of configurations, tokenizers, vocabularies and chat templates."""
_TEMPLATES = "additional_chat_templates"

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_MODULES = "modules.json"
_CONFIGS = (ADAPTER_CONFIG, "adapter_fusion_config.json", "adapter_setup.json", "head_config.json")
_ADAPTER_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter.safetensors",
    "model_head.safetensors",
    "model_adapter_fusion.safetensors",
)
_PICKLES = re.compile(r"(?:.*/)?(?:pytorch_|adapter_model)[^/]*\.bin|.*\.(?:pt|pth|ckpt|pkl|h5|msgpack)")


@dataclass(frozen=True)
class RepositoryFiles:
    """The files of a repository for one kind of reader, with a listing of their hashes next to their folder.

    Attributes:
        wanted: kind of reader.
    """

    wanted: Wanted

    @property
    def suffix(self) -> str:
        """Suffix of the cache folder."""
        return f"-{self.wanted}"

    def take(self, source: Source, remote: Remote, folder: Path, order: Order) -> None:
        """Download the files, and write the listing.

        Raises:
            BaseModelError, AdapterError: the repository has no such model or adapter, or only pickles of its tensors.
            FormatError: an index lists a missing file, or files are too large.
            RemoteError: the hub rejects the request.
        """
        assert isinstance(order.reference, HubReference)
        place = _folder_in(folder, order.reference)
        place.mkdir()
        repository = _Repository(order.reference, remote, source, place)
        with moved(f"{place}/", f"{order.reference}, "):
            if self.wanted == "model":
                first, weights = repository.model()
            elif self.wanted == "adapter":
                first, weights = repository.adapter()
            else:
                first, weights = [], repository.tokenizer()
        download_all(source, weights, place, order, before=len(first))
        write_listing(folder, place)

    def verify(self, folder: Path) -> None:
        """Compare all files with the listing."""
        verify_listing(folder)

    def accept(self, folder: Path) -> None:
        """Accept any contents."""


def fetch_files(reference: HubReference, wanted: Wanted, reporter: Reporter) -> tuple[str, Path]:
    """Return the commit of a repository, and a cache folder with its verified files. Treat it as read-only.

    For errors see `fetch` and `RepositoryFiles.take`.
    """
    order = Order(reference, RepositoryFiles(wanted), reporter)
    pin, folder = fetch_contents(order, lambda: nullcontext(Hub(reference)))
    return pin, _folder_in(folder, reference)


def write_listing(folder: Path, place: Path) -> None:
    """Write the hashes of the files in `place`, a subfolder of `folder`, to `folder`."""
    rows = [asdict(RemoteFile(path, file.stat().st_size, sha256_of(file))) for path, file in _inside(place)]
    (folder / _LISTING).write_bytes(canonical_json(rows))


def verify_listing(folder: Path) -> None:
    """Compare the files in a subfolder of `folder` with the listing.

    Raises:
        FormatError: files differ, are missing or unexpected.
        FileError: a file cannot be read.
    """
    rows = read_json(folder / _LISTING)
    listed = files_by_path(rows if isinstance(rows, list) else [], folder / _LISTING)
    present = {path: file for subfolder in folder.iterdir() if subfolder.is_dir() for path, file in _inside(subfolder)}
    differing = [path for path in {*listed, *present} if _differs(listed.get(path), present.get(path))]
    if differing or not listed:
        raise FormatError("files differ from the download", where=folder, found=quoted(differing) or "none")


def _folder_in(folder: Path, reference: HubReference) -> Path:
    """Return the subfolder of the cache folder with the files, named like the repository for messages."""
    return folder / reference.name


def _inside(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def _has_chat_templates(path: str) -> bool:
    return path == "tokenizer_config.json" or (_parent(path) in ("", _TEMPLATES) and path.endswith(".jinja"))


def _differs(listed: RemoteFile | None, file: Path | None) -> bool:
    return listed is None or file is None or sha256_of(file) != listed.digest


@dataclass(frozen=True)
class _Repository:
    """A repository to download: first its small files, which name the large ones."""

    reference: HubReference
    remote: Remote
    source: Source
    place: Path

    def model(self) -> tuple[Collection[RemoteFile], Collection[RemoteFile]]:
        """Download the text files of a model; return them and the weights."""
        names = self.remote.files
        if not names.keys() & {"config.json", _MODULES}:
            raise self._no_model("neither `config.json` nor `modules.json`")
        first = self._take_texts("")
        first += self._take_texts(_TEMPLATES)
        folders = self._module_folders() if _MODULES in names else []
        first += [file for folder in folders for file in self._take_texts(folder)]
        weights = {folder: self._weights(folder) for folder in ["", *folders]}
        if not weights["" if "config.json" in names or not folders else folders[0]]:
            raise self._only_pickles(
                BaseModelError,
                f"if you trust its author, load and save it: `AutoModel.from_pretrained("
                f'"{self.reference.repository}").save_pretrained("folder")`',
                f"pass that folder, or a revision with `{_WEIGHTS}`: bots of the Hub offer one as `refs/pr/…`",
            )
        return first, [file for files in weights.values() for file in files]

    def adapter(self) -> tuple[Collection[RemoteFile], Collection[RemoteFile]]:
        """Download the text files of adapters of another library; return them and the tensors."""
        names = self.remote.files
        folders = [""] if ADAPTER_CONFIG in names else sorted({_parent(path) for path in names if path.count("/") <= 1})
        having = [folder for folder in folders if any(_join(folder, config) in names for config in _CONFIGS)]
        if not having:
            raise AdapterError(
                "is not an adapter of PEFT or AdapterHub",
                where=self.reference,
                found=quoted(sorted(names)[:5]) or "no files",
                expected=f"`{ADAPTER_CONFIG}`",
                fix="check the name of the repository",
            )
        first = [file for folder in dict.fromkeys(["", *having]) for file in self._take_texts(folder)]
        weights = [
            names[path] for folder in having for name in _ADAPTER_WEIGHTS if (path := _join(folder, name)) in names
        ]
        if not weights:
            raise self._only_pickles(
                AdapterError,
                f"if you trust its author, download it: `hf download {self.reference.repository}` prints its folder",
                "import that folder; only tensors are read from its pickles",
            )
        return first, weights

    def tokenizer(self) -> Collection[RemoteFile]:
        """Return the tokenizer file, and those with its chat templates."""
        if _TOKENIZER not in self.remote.files:
            raise BaseModelError(
                f"has no `{_TOKENIZER}`",
                where=self.reference,
                found=quoted(sorted(self.remote.files)[:5]) or "no files",
                expected="a tokenizer of the tokenizers library",
                fix="save one with `tokenizer.save_pretrained(folder)`",
            )
        chat = [file for file in self.remote.files.values() if _has_chat_templates(file.path)]
        check_bounds(chat, self.reference)
        return [self.remote.files[_TOKENIZER], *chat]

    def _take_texts(self, folder: str) -> list[RemoteFile]:
        files = [
            file
            for file in self.remote.files.values()
            if _parent(file.path) == folder and file.path.endswith(_TEXTS) and file.size <= MOST_JSON_BYTES
        ]
        check_bounds(files, self.reference)
        for file in files:
            self.source.download(file, self.place)
        return files

    def _module_folders(self) -> list[str]:
        """Return the module folders of a sentence-transformers model, direct subfolders of the repository."""
        document: Any = read_json(self.place / _MODULES)
        entries = document if isinstance(document, list) else []
        paths = [str(entry.get("path")).strip("/") for entry in entries if isinstance(entry, Mapping)]
        folders = {_parent(path) for path in self.remote.files} - {""}
        return [path for path in dict.fromkeys(paths) if path in folders]

    def _weights(self, folder: str) -> list[RemoteFile]:
        """Return the weights in a folder, selected like in transformers: one file, or else the shards of an index."""
        files, whole, index = self.remote.files, _join(folder, _WEIGHTS), _join(folder, _INDEX)
        if whole in files:
            return [files[whole]]
        if index not in files:
            return []
        document: Any = read_json(self.place / index)
        # an index may name any file, such as a pickle
        candidates = ((path.rpartition("/"), file) for path, file in files.items() if path.endswith(".safetensors"))
        beside = {name: file for (parent, _, name), file in candidates if parent == folder}
        try:
            return [beside[name] for name in sorted(set(document["weight_map"].values()))]
        except (LookupError, TypeError, AttributeError) as error:
            raise FormatError(
                "the weight index does not match the repository",
                where=f"{self.reference}, `{index}`",
                found=visible(str(error)[:200]),
                expected="`weight_map` with names of safetensors files in the same folder",
                fix="pass another revision",
            ) from error

    def _no_model(self, actual: str) -> InputError:
        """Return the error for a repository without a model; its fix is the command for its actual contents."""
        names = self.remote.files
        what, fix = "is not a transformers or sentence-transformers model", "check the name of the repository"
        for kind, head in HEADS.items():
            if head in names:
                actual, fix = f"{kind} of this package", f"run `adapter-export pull {self.reference}`"
        if ADAPTER_CONFIG in names:
            self.source.download(names[ADAPTER_CONFIG], self.place)
            base = named_base(self.place)
            importing = command(
                f'import_peft("{self.reference}", "model.pt")', f"import peft {self.reference} --base model.pt"
            )
            actual = "an adapter" if base is None else f"an adapter of the model `{base}`"
            fix = f"capture {'its base' if base is None else f'`{base}`'} to `model.pt`, then run " + importing
        return BaseModelError(what, where=self.reference, found=actual, expected="`config.json`", fix=fix)

    def _only_pickles(self, kind: type[InputError], fix: str, then: str) -> InputError:
        pickles = sorted(path for path in self.remote.files if _PICKLES.fullmatch(path))
        return kind(
            "has no safetensors file; pickles are not downloaded because they can execute code",
            where=self.reference,
            found=quoted(pickles[:3]) or quoted(sorted(self.remote.files)[:5]) or "no files",
            expected="safetensors",
            fix=f"{fix}; then {then}" if pickles else "check the name of the repository",
        )


def _join(folder: str, name: object) -> str:
    return f"{folder}/{name}" if folder else str(name)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
