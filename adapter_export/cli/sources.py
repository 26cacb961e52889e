"""Opens a base, whichever of its forms a path leads to; what the form needs is imported only then."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from adapter_export.errors import BaseModelError, FileError, MissingExtraError
from adapter_export.sites.site import SiteMap

if TYPE_CHECKING:
    from adapter_export.onnx.base import OnnxBase
    from adapter_export.onnx.genai import GenaiFolder
    from adapter_export.sites.given import GivenSites
    from adapter_export.torch.base import TorchBase

Form = Literal["archive", "folder", "onnx", "genai"]
"""A torch archive, a Hugging Face folder, an ONNX file, a folder of onnxruntime-genai."""

FORM_NAMES: dict[Form, str] = {
    "archive": "torch archive",
    "folder": "Hugging Face folder",
    "onnx": "ONNX graph",
    "genai": "onnxruntime-genai folder",
}
_GENAI_CONFIG = "genai_config.json"

_ZIP = b"PK"
_PICKLE = "a pickle, which could run code when it is read"
_NOT_MODELS = (
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; `tf2onnx` converts Keras models"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it points to"),
)
_FLATBUFFERS = {
    b"ORTM": "a model in ONNX Runtime's own format (`.ort`), which takes no slots; give the `.onnx` it was made of",
    b"TFL3": "a TensorFlow Lite model; `tf2onnx` converts it",
}
_SAFETENSORS_HEADER_AT = 8


@dataclass(frozen=True)
class TorchSource:
    """A base that torch can train and run.

    Attributes:
        path: where it is.
        form: what it is.
        base: the base.
        given: sites that override or complete those that are found.
    """

    path: Path
    form: Form
    base: TorchBase
    given: GivenSites | None = None

    @property
    def fingerprint(self) -> str:
        """Of the base's weights."""
        return self.base.fingerprint

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it is known."""
        return self.base.tokenizer

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, if that is known."""
        return self.base.max_tokens

    def sites(self) -> SiteMap:
        """Where adapters can act.

        Raises:
            NoSitesError: nowhere.
            UsageError: the given sites do not fit.
        """
        from adapter_export.sites.given import sites_of
        from adapter_export.torch.flow import flow_graph

        return sites_of(flow_graph(self.base.module()), "torch", self.given)


@dataclass(frozen=True)
class OnnxSource:
    """A base as an ONNX graph.

    Attributes:
        path: where it is.
        form: what it is.
        base: the base.
        given: sites that override or complete those that are found.
        genai: the folder of onnxruntime-genai that it lies in, where that was given.
    """

    path: Path
    form: Form
    base: OnnxBase
    given: GivenSites | None = None
    genai: GenaiFolder | None = None

    @property
    def fingerprint(self) -> str:
        """Of the base's weights."""
        return self.base.fingerprint

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it is known."""
        return self.genai.tokenizer if self.genai else None

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, if that is known."""
        return self.genai.max_tokens if self.genai else None

    def sites(self) -> SiteMap:
        """Where adapters can act."""
        return self.base.sites


Source = TorchSource | OnnxSource


def open_source(path: Path, *, trust_pickle: bool = False, site_map: Path | None = None) -> Source:
    """Open a base, with the sites of a site map if one is given.

    Raises:
        FileError: it is not there.
        BaseModelError: it is no base, or a damaged one.
        NoSitesError: an ONNX base in which no place for an adapter was found.
        MissingExtraError: what its form needs is not installed.
    """
    form, given = form_of(path), None if site_map is None else read_given(site_map)
    if form == "onnx":
        from adapter_export.cli.output import say
        from adapter_export.onnx.base import open_onnx

        base = open_onnx(path, given=given)
        for note in base.notes:
            say(f"{path.name}: {note}")
        return OnnxSource(path, form, base, given)
    if form == "genai":
        from adapter_export.onnx.genai import open_genai

        folder = open_genai(path, given=given)
        return OnnxSource(path, form, folder.base, given, folder)
    return TorchSource(path, form, _open_torch(path, form, trust_pickle), given)


def read_given(site_map: Path) -> GivenSites:
    """Read a site map.

    Raises:
        FileError, FormatError: as `format.site_map_json.read_site_map`.
    """
    from adapter_export.format.site_map_json import read_site_map

    return read_site_map(site_map)


def open_torch(path: Path, *, trust_pickle: bool = False) -> TorchBase:
    """Open a base that torch can train.

    Raises:
        BaseModelError: it is an ONNX graph, which has no gradients; or no base, or a damaged one.
        FileError, MissingExtraError: as `open_source`.
    """
    form = form_of(path)
    if form in ("onnx", "genai"):
        raise BaseModelError(
            f"is an {FORM_NAMES[form]}, which torch cannot train",
            where=path,
            expected="a torch archive (`.pt`, `.pt2`) or a Hugging Face folder",
            fix="give the model that the graph was exported from",
        )
    return _open_torch(path, form, trust_pickle)


def form_of(path: Path) -> Form:
    """What a path holds, by its contents, not by its name.

    Raises:
        FileError: nothing is there, or it cannot be read.
        BaseModelError: something else than a base.
    """
    if path.is_dir():
        return _form_of_folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError as error:
        raise FileError("is not there", where=path, expected="a model", fix="check the path") from error
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=path, fix="check its permissions") from error
    if start.startswith(_ZIP):
        return "archive"
    _refuse_others(path, start)
    return "onnx"


def _form_of_folder(path: Path) -> Form:
    others = {"manifest.json": "a bundle", "adapter_graph.json": "an adapter"}
    found = next((f"{name}: its `{file}` is there" for file, name in others.items() if (path / file).is_file()), None)
    if found is None and (path / _GENAI_CONFIG).is_file():  # the bundle of such a folder has that file, too
        return "genai"
    if (path / "config.json").is_file():
        return "folder"
    raise _not_a_base(path, found or f"a folder without `config.json` or `{_GENAI_CONFIG}`")


def _refuse_others(path: Path, start: bytes) -> None:
    """Say what a file is where that is plain; protobuf has no mark of its own, so the rest is tried as ONNX."""
    found = next((name for mark, name in _NOT_MODELS if start.startswith(mark)), None)
    found = _FLATBUFFERS.get(start[4:8], found)
    if start[_SAFETENSORS_HEADER_AT:].startswith(b"{"):
        found = "a safetensors file: weights without the model that they belong to"
    if not start:
        found = "an empty file"
    if found is not None:
        raise _not_a_base(path, found)


def _not_a_base(path: Path, found: str) -> BaseModelError:
    fix = "run `adapter-export capture HF_FOLDER -o model.pt`, or save a torch module with `save_base`"
    if found == _PICKLE:
        fix = (
            f"only if you trust whoever made it, run `adapter-export capture --trust-pickle {path} -o model.pt`, which "
            "runs its code once, and use `model.pt`, which holds none"
        )
    return BaseModelError(
        "is not a model that can be opened",
        where=path,
        found=found,
        expected="a torch archive (`.pt`, `.pt2`), a Hugging Face folder, an ONNX file or an onnxruntime-genai folder",
        fix=fix,
    )


def _open_torch(path: Path, form: Form, trust_pickle: bool) -> TorchBase:
    require("torch", "torch", "opening this model")
    if form == "folder":
        require("transformers", "hf", "opening a Hugging Face folder")
        from adapter_export.torch.huggingface import open_folder

        return open_folder(path)
    from adapter_export.torch.base import load_base

    return load_base(path, trust_pickle=trust_pickle)


def require(library: str, extra: str, needed_for: str) -> ModuleType:
    """Import a library that is an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingExtraError(library, extra=extra, needed_for=needed_for) from error


def read_tokenizer(path: Path) -> str:
    """The text of a `tokenizer.json`.

    Raises:
        FileError: it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"no tokenizer can be read ({error})",
            where=path,
            expected="a `tokenizer.json` of the tokenizers library",
            fix="save one with `tokenizer.save_pretrained(folder)`",
        ) from error
