"""The folder layout of transformers.js, for Node and browsers.

transformers.js finds files by their names: `config.json`, `tokenizer.json`, `tokenizer_config.json`, `onnx/model.onnx`
and, as the only file with weights, `onnx/model.onnx_data` (`src/utils/model-loader.js` in its repository).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from adapter_export.bundle.variants.bank_variant import BANK_FILE
from adapter_export.errors import FormatError, UsageError
from adapter_export.format.manifest import Manifest, token_lengths
from adapter_export.onnx_backend.base.external import WEIGHTS_FILE, join_weights, read_model
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.text import TOKENIZER_FILE, unfillable
from adapter_export.words import argument, quoted

_MODEL_TYPE = "custom"
"""Model type for which transformers.js passes inputs and outputs of the graph through."""

_TASK_FIELDS = ("labels", "activation", "input", "prefix", "truncation")


def check_for_transformers_js(bundle: Path, manifest: Manifest) -> None:
    """Raise UsageError if transformers.js cannot answer texts with a bundle."""
    if manifest.bank is None:
        fix: str = "build it again with " + argument("variants", ["slots", "inputs", "bank"])
        raise UsageError("has no graph `bank`, which transformers.js needs", where=bundle, fix=fix)
    if manifest.text is None:
        fix = (
            "build it again with "
            + argument("tokenizer")
            + ", or run arrays with `examples/node` or `examples/browser`"
        )
        raise UsageError("has no tokenizer, which transformers.js needs", where=bundle, fix=fix)
    unknown = unfillable(record.name for record in manifest.inputs)
    if unknown:
        fix = "pass arrays with `examples/node` or `examples/browser`"
        raise UsageError("has inputs that text cannot fill", where=bundle, found=quoted(unknown), fix=fix)
    lengths = token_lengths(manifest.inputs, manifest.lengths)
    if not lengths.unbroken and not (_may_pad(manifest) and lengths.maximum):
        raise UsageError(
            "supports only some lengths, and padding changes its answers",
            where=bundle,
            found=str(lengths),
            fix="export the base with a variable number of tokens",
        )
    for record in manifest.adapters:
        if record.task is not None and record.task.tokenizer not in (None, manifest.text.digest):
            raise UsageError(
                "was trained with another tokenizer, whose ids differ from the bundle's",
                where=f"adapter `{record.name}`",
                fix="build the bundle with the adapter's tokenizer, or remove the adapter",
            )
        if record.task is not None and record.task.has_sides:
            raise UsageError(
                "has prefixes of queries and of documents, but this layout supports one prefix",
                where=f"adapter `{record.name}`",
                fix="remove the adapter, or serve the bundle with `examples/node`",
            )


def copied_for_transformers_js(manifest: Manifest) -> list[str]:
    """Return the paths of the files that `write_for_transformers_js` reads."""
    assert manifest.text is not None
    weights = {WEIGHTS_FILE, BANK_FILE} & {file.path for file in manifest.files}
    return [manifest.graphs["bank"], manifest.text.tokenizer, *sorted(weights)]


def write_for_transformers_js(source: Path, folder: Path, manifest: Manifest) -> None:
    """Write the model, its tokenizer and the table of adapters from verified copies in `source`."""
    assert manifest.text is not None
    (folder / "onnx").mkdir(exist_ok=True)
    graph = source / manifest.graphs["bank"]
    model = read_model(graph, lambda reason: FormatError("is not an ONNX model", where=graph, found=reason))
    has_weights = join_weights(model, folder / "onnx" / "model.onnx_data")
    ir.save(model, folder / "onnx" / "model.onnx")
    documents = {
        "config.json": _config(manifest, has_weights=has_weights),
        "adapters.json": _adapters(manifest),
        TOKENIZER_FILE: _with_sigma(_read(source / manifest.text.tokenizer)),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizer"},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(manifest: Manifest, *, has_weights: bool) -> Mapping[str, object]:
    """Return `config.json`: settings of transformers.js, and of rows that share a call."""
    assert manifest.bank is not None
    lengths, padded = token_lengths(manifest.inputs, manifest.lengths), _may_pad(manifest)
    return {
        "model_type": _MODEL_TYPE,
        # without a type, transformers.js looks for `model_quantized.onnx` in browsers
        "transformers.js_config": {"dtype": "fp32", "use_external_data_format": has_weights},
        "adapter_export": {
            "adapter_ids": manifest.bank.ids,
            "mixes_rows": manifest.batch_invariant and padded,
            "padded_to": None if lengths.unbroken else lengths.maximum,
        },
    }


def _adapters(manifest: Manifest) -> Mapping[str, Mapping[str, object]]:
    """Return each adapter's row in the bank, its task and its preprocessing, by name."""
    assert manifest.bank is not None
    by_name: dict[str, Mapping[str, object]] = {}
    most = token_lengths(manifest.inputs, manifest.lengths).maximum
    for record in manifest.adapters:
        facts: dict[str, object] = {"row": manifest.bank.rows.index(record.name), "output": record.output, "task": None}
        if (task := record.task) is not None:
            limits = [limit for limit in (task.max_tokens, most) if limit is not None]
            facts |= {"task": task.type, "max_tokens": min(limits, default=None)}
            facts |= {name: getattr(task, name) for name in _TASK_FIELDS}
            facts["thresholds"] = [task.threshold(at) for at, _ in enumerate(task.labels)]
        by_name[record.name] = facts
    return by_name


def _may_pad(manifest: Manifest) -> bool:
    """Return whether rows of any adapter may be padded."""
    has_mask = any(record.name == "attention_mask" for record in manifest.inputs)
    return has_mask and manifest.padding_neutral and not manifest.counts_padding


def _read(tokenizer: Path) -> dict[str, Any]:
    with parsing(lambda reason: FormatError("is not a `tokenizer.json`", where=tokenizer.name, found=reason)):
        document: dict[str, Any] = json.loads(read_text(tokenizer))
    return document


def _with_sigma(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a `tokenizer.json` that lowers Σ to σ in JavaScript, as the tokenizers library does.

    JavaScript lowers a Σ at the end of a word to ς, which has other ids.
    """
    normalizer = tokenizer.get("normalizer")
    if not _lowers(normalizer):
        return tokenizer
    sigma = {"type": "Replace", "pattern": {"String": "Σ"}, "content": "σ"}
    return {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": [sigma, normalizer]}}


def _lowers(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    lowers = normalizer["type"] == "Lowercase" or normalizer.get("lowercase") is True
    return lowers or any(map(_lowers, normalizer.get("normalizers", ())))
