"""Folders of onnxruntime-genai: `genai_config.json`, the graph of a decoder that it names, a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import BaseModelError
from adapter_export.format.files import read_json
from adapter_export.onnx_backend.base.base import OnnxBase, open_onnx
from adapter_export.onnx_backend.base.external import external_files
from adapter_export.sites.site_map import GivenSites

CONFIG_FILE = "genai_config.json"


@dataclass(frozen=True)
class GenaiFolder:
    """A folder with a decoder, `base`, that onnxruntime-genai generates with."""

    folder: Path
    config: Mapping[str, Any]
    base: OnnxBase

    @property
    def tokenizer(self) -> str | None:
        """The text of its `tokenizer.json`, if it has one; `BaseModelError` where that is no text."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BaseModelError("is no text", where=path, found=error, fix="build the folder again") from error

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that it takes, past and new ones together."""
        length = self.config["model"].get("context_length")
        return length if isinstance(length, int) and length > 0 else None

    def kept(self, graph: str) -> dict[str, Path | bytes]:
        """The files by name that onnxruntime-genai needs beside a bundle's graph, which its configuration names."""
        own = {self.base.path.resolve(), *external_files(self.base.model, self.base.folder)}
        others = [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.resolve() not in own]
        files: dict[str, Path | bytes] = {path.name: path for path in others}
        if _graph_name(self.config) != graph:
            decoder = {**self.config["model"]["decoder"], "filename": graph}
            config = {**self.config, "model": {**self.config["model"], "decoder": decoder}}
            files[CONFIG_FILE] = json.dumps(config, indent=4).encode()
        return files


def open_genai(folder: Path, *, given: GivenSites | None = None) -> GenaiFolder:
    """Open a folder of onnxruntime-genai's model builder, of any precision whose sites are float32.

    `FileError`: a file cannot be read. `BaseModelError`: it names no decoder. Others as `open_onnx` for the decoder.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    name = _graph_name(config)
    if name is None or Path(name).name != name:
        raise BaseModelError(
            "names no graph of a decoder in its folder",
            where=f"{path}, `model.decoder.filename`",
            found="nothing" if name is None else f"`{name}`",
            expected="the name of a file beside it, such as `model.onnx`",
            fix="build the folder again with `python -m onnxruntime_genai.models.builder`",
        )
    assert isinstance(config, dict)  # it has a name of a graph in it
    return GenaiFolder(folder, config, open_onnx(folder / name, given=given))


def _graph_name(config: object) -> str | None:
    for key in ("model", "decoder", "filename"):
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, str) else None
