"""Folders of onnxruntime-genai: `genai_config.json`, the decoder graph it names, and a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapter_export.errors import BaseModelError
from adapter_export.format.files import IDENTITY_FILE
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.format.model_config import Generation
from adapter_export.onnx_backend.base.base_identity import BaseIdentity, read_identity
from adapter_export.onnx_backend.base.external import external_files
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.regular_files import read_text

CONFIG_FILE, TOKENIZER_CONFIG_FILE = "genai_config.json", "tokenizer_config.json"


@dataclass(frozen=True)
class GenaiFolder:
    """Folder with a decoder graph, its configuration, and the files that onnxruntime-genai needs for generation."""

    folder: Path
    config: Mapping[str, Any]
    graph: Path

    @property
    def tokenizer(self) -> str | None:
        """Text of its `tokenizer.json`, if it has one; `FormatError` if that is not text."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        return read_text(path)

    @cached_property
    def identity(self) -> BaseIdentity | None:
        """Record of the trained model with its weights; `FormatError` if it cannot be read."""
        path = self.folder / IDENTITY_FILE
        return read_identity(path) if path.is_file() else None

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens, including past and new ones."""
        length = self.config["model"].get("context_length")
        return length if isinstance(length, int) and length > 0 else None

    def companions(self, decoder: OnnxBase, graph: str) -> dict[str, Path | bytes]:
        """Return the files by name that onnxruntime-genai needs with a bundle's graph.

        Args:
            decoder: the opened graph of the folder, whose weights are excluded.
            graph: file name of the bundle's graph, for the configuration.
        """
        of_graph = {decoder.path.resolve(), *external_files(decoder.model, decoder.folder)}
        others = [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.resolve() not in of_graph]
        files: dict[str, Path | bytes] = {path.name: path for path in others}
        if _graph_name(self.config) != graph:
            named = {**self.config["model"]["decoder"], "filename": graph}
            config = {**self.config, "model": {**self.config["model"], "decoder": named}}
            files[CONFIG_FILE] = json.dumps(config, indent=4).encode()
        return files


def read_genai(folder: Path) -> GenaiFolder:
    """Read the configuration of a folder written by onnxruntime-genai's model builder.

    Raises:
        FileError, FormatError: a file cannot be read.
        BaseModelError: the configuration names no decoder in the folder.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    name = _graph_name(config)
    if name is None or Path(name).name != name:
        raise BaseModelError(
            "names no decoder graph in its folder",
            where=f"{path}, `model.decoder.filename`",
            found="nothing" if name is None else f"`{name}`",
            expected="the name of a file in the same folder, such as `model.onnx`",
            fix="build the folder again with `python -m onnxruntime_genai.models.builder`",
        )
    assert isinstance(config, dict)  # checked above: it names a graph
    return GenaiFolder(folder, config, folder / name)


def generating_files(
    inputs: Sequence[InputRecord],
    outputs: Sequence[OutputRecord],
    generation: Generation,
    max_tokens: int | None,
    graph: str,
) -> dict[str, bytes]:
    """Return the files by name that onnxruntime-genai needs with the graph of a captured decoder.

    Empty unless the base is a decoder with keys and values of each layer, a known end token and a known maximum length.
    Also empty if tokens are forced or suppressed, since onnxruntime-genai has no settings for them.
    """
    caches = {record.name: str(record.next) for record in inputs if record.role == "cache"}
    roles = {record.role: record.name for record in inputs if record.name not in caches}
    results = [record for record in outputs if record.name not in caches.values()]
    shapes = {record.axes[1::2] for record in inputs if record.name in caches}
    patterns = list(
        dict.fromkeys(tuple(re.sub(r"\d+", "%d", name, count=1) for name in pair) for pair in caches.items())
    )
    named = {p.replace("%d", str(n)): q.replace("%d", str(n)) for n in range(len(caches) // 2) for p, q in patterns}
    known = {"ids"} <= set(roles) <= {"ids", "mask"} and len(roles) + len(caches) == len(inputs) and len(results) == 1
    if not known or len(patterns) != 2 or named != caches or len(shapes) != 1 or not generation.end or not max_tokens:
        return {}
    if generation.suppressed or (generation.first, generation.last) != (None, None):
        return {}
    ((heads, width),) = shapes
    (key, next_key), (value, next_value) = patterns
    names = {"ids": "input_ids", "mask": "attention_mask"}
    decoder = {
        "filename": graph,
        "head_size": width,
        "num_key_value_heads": heads,
        "num_hidden_layers": len(caches) // 2,
        "inputs": {
            **{names[role]: name for role, name in roles.items()},
            "past_key_names": key,
            "past_value_names": value,
        },
        "outputs": {"logits": results[0].name, "present_key_names": next_key, "present_value_names": next_value},
    }
    ids = {"bos_token_id": generation.begin, "pad_token_id": generation.padding, "eos_token_id": list(generation.end)}
    model = {
        "type": "decoder",
        "context_length": max_tokens,
        "vocab_size": results[0].axes[-1],
        **{name: number for name, number in ids.items() if number is not None},
        "decoder": decoder,
    }
    # each `present` is a new tensor: the graph does not update its input caches in place
    search = {"max_length": max_tokens, "past_present_share_buffer": False}
    files = {CONFIG_FILE: json.dumps({"model": model, "search": search}, indent=4).encode()}
    if generation.tokenizer_config is not None:
        files[TOKENIZER_CONFIG_FILE] = generation.tokenizer_config.encode()
    return files


def _graph_name(config: object) -> str | None:
    for key in ("model", "decoder", "filename"):
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, str) else None
