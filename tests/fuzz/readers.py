"""The readers of foreign files: what each reads that is right, and how that is changed."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import mutations as change
import numpy as np
import onnx
from onnx import numpy_helper

sys.path += [str(Path(__file__).parents[1] / "support")]

from hand_made_sites import BERT, DISTILBERT, encoder
from packed import unpacked
from small_bundle import Built, build_small
from small_media import noise, png, wav
from tiny_decoder import cached_graph

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.bundle.golden.golden_parts import GoldenParts, read_parts
from adapter_export.commands.bundles._run_rows import read_arrays, read_file
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.derivation import read_derivation
from adapter_export.format.files import canonical_json
from adapter_export.format.golden_batches import read_golden_batches
from adapter_export.format.golden_texts import read_golden_texts
from adapter_export.format.manifest import InputRecord, PartRecord, PartsRecord
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.site_map_json import read_site_map
from adapter_export.format.tabular.labelled import Columns, labelled_rows
from adapter_export.format.tabular.table_rows import Columns as TableColumns
from adapter_export.format.tensors import read_tensors, tensor_bytes
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.base.sandbox import try_graph
from adapter_export.plugins.formats.importers.adapterhub import import_adapterhub
from adapter_export.plugins.formats.importers.peft import import_peft
from adapter_export.runtime.adapter_file import parse_adapter
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_text
from adapter_export.text import Pair, Tokenizer, try_tokenizer

LIGHT = (
    *("manifest", "derivation", "adapter", "safetensors", "onnx_adapter", "onnx", "onnx of a cache"),
    *("onnx of fused", "site map", "tokenizer", "golden batches", "golden parts", "golden texts", "npz"),
    *("image", "clip", "csv", "jsonl", "rows"),
)
"""The names of the readers that need no torch."""

HEAVY = (
    *("archive", "torch file", "old torch file", "AdapterHub", "AdapterHub LoRA", "PEFT LoRA", "PEFT IA3"),
    *("PEFT head", "checkpoint"),
)
"""The names of the others."""

_TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": {
        **{"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    },
    "added_tokens": [
        {"id": n, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for n, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
    ],
    "normalizer": {
        **{"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
        **{"strip_accents": None, "lowercase": True},
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": False},
            {"type": "BertPreTokenizer"},
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [n], "tokens": [name]} for n, name in ((2, "[CLS]"), (3, "[SEP]"))
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
        **{"max_input_chars_per_word": 100},
        "vocab": {name: n for n, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "b", "word"))},
    },
}


_DERIVATION = {
    **{"version": "1.0.0", "program": "0" * 64, "made_by": {"onnx": "1.18"}, "optimized": False, "golden": ["one"]},
    "constants": [
        {"name": "w", "how": "sliced", "sources": ["a"], "transposed": False, "axis": 0, "start": 1, "sha256": None},
        {"name": "v", "how": "made", "sources": [], "transposed": False, "axis": None, "start": None}
        | {"sha256": "1" * 64},
    ],
}

_SITE_MAP = {
    "version": "1.0.0",
    "sites": {
        "layers.0.ffn": {
            "role": "ffn",
            "layer": 0,
            "onnx": {"h": "h0", "x": "x0"},
            "torch": {"h": "a", "x": "b", "y": "c"},
        },
        "layers.0.attention": None,
    },
    "final": {"onnx": "hidden"},
}

_TEXTS = {
    **{"version": "1.0.0", "digest": "0" * 64, "tokenizer": "tokenizers"},
    "sets": [
        {"adapter": None, "reference": None, "absolute": 0.0, "reason": None}
        | {
            "texts": [
                {"name": "one", "text": "a", "pair": None, "ids": [2, 4], "token_type_ids": [0, 0]},
                {"name": "two", "text": "a", "pair": "b", "ids": [2], "token_type_ids": [0]}
                | {"answer": {"label": "x"}, "context": [0, 1], "decided": True},
            ]
        }
    ],
}


@dataclass(frozen=True)
class Reader:
    """A reader, the files of a folder that it reads without an error, and a mutation for each that is changed."""

    read: Callable[[Path], object]
    files: Mapping[str, bytes]
    mutations: Mapping[str, change.Mutation]

    def write(self, folder: Path, random: Random | None) -> None:
        """Write the files, one of them changed."""
        changed = None if random is None else random.choice(sorted(self.mutations))
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            made = data if random is None or name != changed else self.mutations[name](data, random)
            path.write_bytes(made)


def _of(kind: change.Mutation, read: Callable[[Path], object], name: str, data: bytes) -> Reader:
    return Reader(lambda folder: read(folder / name), {name: data}, {name: kind})


def _folder(read: Callable[[Path], object], folder: Path, *names: str) -> Reader:
    kinds = {".json": change.of_json, ".safetensors": change.of_safetensors}
    files = {name: (folder / name).read_bytes() for name in names}
    return Reader(read, files, {name: kinds[Path(name).suffix] for name in names})


def _unsigned(data: bytes) -> bytes:
    """A document without the checksum of itself, which may be left out: else no change would be seen behind it."""
    document: Any = parse_json(data, "seed")
    document.pop("checksum", None)
    return canonical_json(document)


def _any_weights(read: Callable[[Path], object], graph: str, weights: str) -> Callable[[Path], object]:
    """Let the hash of the weights be right where it was changed with them."""
    import hashlib

    def fixed(folder: Path) -> object:
        with suppress(Exception):
            document: Any = parse_json((folder / graph).read_bytes(), graph)
            document["weights"]["sha256"] = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
            (folder / graph).write_bytes(canonical_json(document))
        return read(folder)

    return fixed


def _tokens(path: Path) -> object:
    text = read_text(path)
    try_tokenizer(text)  # as everything that is built opens it
    tokenizer = Tokenizer.from_json(text, 16)
    texts = ["a word", Pair("b a", "word " * 20), "", "\u0301\U0001f600 a" * 5, "a" * 40]
    return [tokenizer.rows([text]) for text in texts], tokenizer.windows("a b word " * 20, 8)


def _graph(path: Path) -> object:
    try_graph(path)  # as everything that reads a base opens it
    return open_onnx(path)


def _npz(**arrays: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def _fused() -> onnx.ModelProto:
    """Operators of ONNX Runtime, a function, a branch, and constants in nodes."""
    model: onnx.ModelProto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1, "own" : 1]>
        fused (int64[batch, tokens] ids, int64[batch, tokens] mask) => (float[batch, tokens, 16] hidden) {
            x0 = Gather <axis = 0> (table, ids)
            product = com.microsoft.FusedMatMul <alpha = 1.0, transB = 0> (x0, w0)
            h0 = com.microsoft.BiasGelu (product, b0)
            x1, mean, deviation, total = com.microsoft.SkipLayerNormalization <epsilon = 1.0e-5> (x0, h0, scale, b0, b1)
            up = own.linear <axis = -1> (x1, w1)
            parts0, parts1 = Split <axis = -1, num_outputs = 2> (up)
            part = Concat <axis = -1> (parts0, parts1)
            turned = Transpose <perm = [0, 2, 1]> (part)
            back = Transpose <perm = [0, 2, 1]> (turned)
            read, scale0, zero = DynamicQuantizeLinear (back)
            whole = MatMulInteger (read, q1, zero)
            cast = Cast <to = 1> (whole)
            h1 = Mul (cast, scale0)
            yes = Constant <value = bool {1}> ()
            same = If (yes) <
                then_branch = one () => (float[batch, tokens, 16] a) { a = Identity (h1) },
                else_branch = two () => (float[batch, tokens, 16] b) { b = Neg (h1) }
            >
            hidden = Add (same, x1)
        }
        <domain: "own", opset_import: ["" : 20]>
        linear <axis> (x, w) => (y) {
            product = MatMul (x, w)
            y = Softmax <axis: int = @axis> (product)
        }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"table": (20, 16), **dict.fromkeys(("w0", "w1"), (16, 16)), **dict.fromkeys(("b0", "b1", "scale"), (16,))}
    weights = {name: (rng.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
    weights["q1"] = rng.integers(-99, 99, (16, 16)).astype(np.int8)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


_PARTS = PartsRecord("p.safetensors", ("one",), (PartRecord("a off", "y", 0.5, 0.1),))
_PART_TENSORS = {
    "one.input.x": np.ones((2, 3), np.float32),
    "one.output.y": np.ones((2, 4), np.float32),
    "one.part.0": np.ones((2, 4), np.int8),
}


def _golden_parts(path: Path) -> GoldenParts:
    inputs = [InputRecord("x", "float32", ("batch", 3), "values")]
    return read_parts(path.parent, "a", replace(_PARTS, path=path.name), inputs)


def light_readers(made: Path) -> dict[str, Reader]:
    """Return the readers without torch. `made` is an empty folder for source files."""
    built: Built = build_small(made)
    bundle, adapter = built.folder, Path(__file__).parents[1] / "format" / "golden" / "adapter"
    record = built.manifest.adapters[0]
    graph, weights = "adapter_graph.json", "weights.safetensors"
    rows = ("text,label,pair\n" + 'a word,yes,"b, c"\nb,no,"x ""y"""\n' * 3).encode()
    lines = b'{"text": "a word", "label": ["yes"], "n": 1.5}\n{"text": "b", "label": [], "n": 2}\n' * 2
    return {
        "manifest": _of(
            change.of_json,
            lambda path: read_manifest(path.parent),
            "manifest.json",
            _unsigned((bundle / "manifest.json").read_bytes()),
        ),
        "derivation": _of(change.of_json, read_derivation, "d.json", canonical_json(_DERIVATION)),
        "adapter": Reader(
            _any_weights(read_adapter, graph, weights),
            {graph: _unsigned((adapter / graph).read_bytes()), weights: (adapter / weights).read_bytes()},
            {graph: change.of_json, weights: change.of_safetensors},
        ),
        "safetensors": _of(change.of_safetensors, read_tensors, "w.safetensors", (adapter / weights).read_bytes()),
        "onnx_adapter": _of(
            change.of_bytes,
            lambda path: parse_adapter(path.read_bytes(), path),
            "a.onnx_adapter",
            (bundle / record.onnx_adapter).read_bytes(),
        ),
        "onnx": _of(change.of_onnx, _graph, "base.onnx", built.model.read_bytes()),
        "onnx of a cache": _of(change.of_onnx, _graph, "a.onnx", cached_graph().SerializeToString()),
        "onnx of fused": _of(change.of_onnx, _graph, "a.onnx", _fused().SerializeToString()),
        "site map": _of(change.of_json, read_site_map, "s.json", canonical_json(_SITE_MAP)),
        "tokenizer": _of(change.of_json, _tokens, "tokenizer.json", canonical_json(_TOKENIZER)),
        "golden batches": _of(
            change.of_json, read_golden_batches, "b.json", (bundle / "golden" / "batches.json").read_bytes()
        ),
        "golden parts": _of(change.of_safetensors, _golden_parts, "p.safetensors", tensor_bytes(_PART_TENSORS)),
        "golden texts": _of(change.of_json, read_golden_texts, "t.json", canonical_json(_TEXTS)),
        "npz": _of(
            change.of_zip(lambda _: change.of_npy),
            read_arrays,
            "a.npz",
            _npz(ids=np.ones((2, 3), np.int64), x=np.ones((2, 3), np.float32)),
        ),
        "image": _of(
            change.of_bytes,
            partial(_medium, "image"),
            "p.png",
            png(noise(6, 5, 3)),
        ),
        "clip": _of(
            change.of_bytes,
            partial(_medium, "audio"),
            "c.wav",
            wav(np.zeros(50)),
        ),
        "csv": _of(change.of_text, partial(_table, "single_label"), "t.csv", rows),
        "jsonl": _of(change.of_text, partial(_table, "multi_label"), "t.jsonl", lines),
        "rows": _of(change.of_text, lambda path: read_file(path, TableColumns("text", "pair")), "t.csv", rows),
    }


def _medium(name: str, path: Path) -> object:
    return FILE_MODALITIES[name].read(path.read_bytes(), None, path)


def _table(problem: Any, path: Path) -> object:
    return labelled_rows(path, Columns(), problem, skip_incomplete=True)


def heavy_readers(made: Path) -> dict[str, Reader]:
    """Return the readers with torch. `made` is an empty folder."""
    import torch
    from archives import save_plainly

    from adapter_export.torch_backend.base.pickles import read_torch_file
    from adapter_export.torch_backend.base.torch_base import load_base
    from adapter_export.training.loop.checkpoint import read_checkpoint

    save_plainly(made / "model.pt")
    states = {True: io.BytesIO(), False: io.BytesIO()}
    for zipped, file in states.items():
        torch.save({"a": torch.randn(3, 4), "b": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    bert, peft = unpacked("adapterhub") / "bert", unpacked("peft")
    request = ImportRequest("a", read_pickle=read_torch_file)
    wide, narrow = (BaseView("sha256:0", encoder(2, 32, inner, BERT), "bert") for inner in (64, 48))
    distilled = BaseView("sha256:0", encoder(2, 32, 48, DISTILBERT), "distilbert")
    hub = partial(import_adapterhub, base=wide, request=request)
    of_peft = partial(import_peft, base=narrow, request=request)
    of_head = partial(import_peft, base=distilled, request=request)
    config = ("adapter_config.json", "adapter.safetensors")
    return {
        "archive": _of(change.of_zip(_entry), load_base, "model.pt", (made / "model.pt").read_bytes()),
        "torch file": _of(
            change.of_zip(lambda name: change.of_pickle if name.endswith(".pkl") else change.of_bytes),
            read_torch_file,
            "a.bin",
            states[True].getvalue(),
        ),
        "old torch file": _of(change.of_pickle, read_torch_file, "a.bin", states[False].getvalue()),
        "AdapterHub": _folder(hub, bert / "seq_bn_inv", *config),
        "AdapterHub LoRA": _folder(hub, bert / "lora", *config),
        "PEFT LoRA": _folder(of_peft, peft / "adapters" / "bert_lora_bias", *_PEFT),
        "PEFT IA3": _folder(of_peft, peft / "adapters" / "bert_ia3", *_PEFT),
        "PEFT head": _folder(of_head, peft / "adapters" / "distilbert_lora_classify", *_PEFT),
        "checkpoint": _of(
            change.of_safetensors, lambda path: read_checkpoint(path, {}), "c.safetensors", _checkpoint()
        ),
    }


_PEFT = ("adapter_config.json", "adapter_model.safetensors")


def _entry(name: str) -> change.Mutation:
    return change.of_json if name.endswith(".json") else change.of_bytes


def _checkpoint() -> bytes:
    import json

    from safetensors.numpy import save

    numbers = {"step": 1, "step_in_epoch": 1, "loss_sum": 0.5, "seconds": 1.0, "best_epoch": 0, "scaler": None}
    state = {**numbers, "losses": [0.5], "history": []}
    return save({"weights/a": np.ones(2, np.float32)}, {"run": "{}", "state": json.dumps(state)})
