"""Folders of sentence-transformers: the vectors of that library, from text, in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import Heard
from small_models import small, traced_once
from small_task import with_random_weights
from tiers import extended
from toolchain import skip_or_fail
from transformers import BertConfig, BertModel

import adapter_export as ae
from adapter_export.errors import BaseModelError, InputError
from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.format.tensors import write_tensors
from adapter_export.graph.adapter import BASE_HEAD, Adapter
from adapter_export.graph.kinds.bottleneck import houlsby
from adapter_export.graph.tasks.answers import Vector
from adapter_export.torch_backend.base.huggingface_folder import open_folder
from adapter_export.torch_backend.base.sentences.sentence_folder import read_sentence_folder
from adapter_export.training.loop.init_adapter import init_adapter

TEXTS = [
    "A man is eating food.",
    "The girl is carrying a baby, isn't she?",
    "x",
    "Ünïcode Größe 漢字 🙂, and so on",
    "a long text that is cut, " * 200,
]


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module")
def library() -> Any:
    try:
        import sentence_transformers
    except ModuleNotFoundError:
        skip_or_fail("sentence-transformers is missing: run `make setup`, or `pip install sentence-transformers`")
    return sentence_transformers


def answered(bundle: ae.Bundle, name: str | None = None) -> np.ndarray:
    """Answer the texts with a bundle, [texts, width]; with its base head if it has no other adapter."""
    answers = bundle.texts(bundle.session()).answer(TEXTS, adapter=name)
    return np.array([one.answer.vector for one in answers if isinstance(one.answer, Vector)], np.float64)


def cosines(found: np.ndarray) -> np.ndarray:
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit @ unit.T


def test_cosines_of_minilm_match_with_and_without_an_adapter(
    library: Any, minilm_folder: Path, minilm_archive: Path, tmp_path: Path
) -> None:
    base = ae.open_base(minilm_archive)
    assert base.base_head is not None
    assert base.base_head.head is not None
    task = base.base_head.head.task
    assert task is not None
    assert (task.type, task.pooling, task.normalised, task.max_tokens) == ("embedding", "mean", True, 256)
    fresh = init_adapter(
        houlsby().with_widths(b=8), base.sites.map, name="mine", base=base.fingerprint, head=base.base_head.head
    )
    adapter = with_random_weights(fresh)
    model = library.SentenceTransformer(str(minilm_folder), device="cpu", local_files_only=True)
    before = np.asarray(model.encode(TEXTS), np.float64)
    with ae.attach(model[0].model, replace(adapter, head=None)):
        after = np.asarray(model.encode(TEXTS), np.float64)
    assert np.abs(cosines(after) - cosines(before)).max() > 0.05
    bundle = ae.build(base, [adapter], tmp_path / "bundle", variants=("slots",))
    for name, expected in (("base", before), ("base-head", before), ("mine", after)):
        found = answered(bundle, name)
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
        assert np.abs(cosines(found) - cosines(expected)).max() < 1e-5


Modules = list[tuple[str, dict[str, Any]]]

TAKEN: dict[str, tuple[dict[str, Any], Modules]] = {
    "first_token": ({"pooling_mode_cls_token": True}, []),
    "last_token": ({"pooling_mode": "lasttoken"}, [("Normalize", {})]),
    "maximum": ({"pooling_mode_max_tokens": True}, []),
    "weighted": ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False}, []),
    "dense": ({"pooling_mode": "mean"}, [("Dense", {"out_features": 24, "activation_function": "Tanh"})]),
    "two_dense": (
        {"pooling_mode": "cls"},
        [
            ("Dense", {"out_features": 48, "activation_function": "GELU"}),
            ("Dense", {"out_features": 16, "activation_function": "Identity", "bias": False}),
            ("Normalize", {}),
        ],
    ),
    "norm": ({"pooling_mode_mean_tokens": True}, [("LayerNorm", {}), ("Dropout", {"dropout": 0.1}), ("Normalize", {})]),
}


def folder_of(place: Path, minilm_folder: Path, pooling: dict[str, Any], modules: Modules, inner: str = "") -> Path:
    """Write a folder in the format of sentence-transformers, with a small BERT with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(initializer_range=0.2, max_position_embeddings=64, **sizes)).save_pretrained(place / inner)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm_folder / name, place / inner)
    (place / inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 50, "do_lower_case": False}))
    width, random, written = 32, np.random.default_rng(0), [("Transformer", inner), ("Pooling", "1_Pooling")]
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **pooling}))
    for number, (kind, options) in enumerate(modules, 2):
        path, config, tensors = f"{number}_{kind}", dict(options), dict[str, tuple[int, ...]]()
        if kind == "Dense":
            config = {"in_features": width, "bias": True, **options}
            group = "linear" if options["activation_function"] == "Identity" else "activation"
            config["activation_function"] = f"torch.nn.modules.{group}.{options['activation_function']}"
            tensors = {"linear.weight": (config["out_features"], width)}
            tensors |= {"linear.bias": (config["out_features"],)} if config["bias"] else {}
            width = config["out_features"]
        elif kind == "LayerNorm":
            config, tensors = {"dimension": width}, {"norm.weight": (width,), "norm.bias": (width,)}
        (place / path).mkdir()
        (place / path / "config.json").write_text(json.dumps(config))
        if tensors:
            drawn = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in tensors.items()}
            write_tensors(place / path / "model.safetensors", drawn)
        written.append((kind, path))
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(written)
    ]
    (place / "modules.json").write_text(json.dumps(entries))
    return place


@pytest.fixture(scope="module")
@extended
def taken(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of `TAKEN`, all of one model, and `bundle` with their heads as adapters.

    The heads are those of captured archives.
    """
    root, heads = tmp_path_factory.mktemp("taken"), list[Adapter]()
    for name, (pooling, modules) in TAKEN.items():
        inner = "0_Transformer" if name == "dense" else ""
        base = ae.capture(folder_of(root / name, minilm_folder, pooling, modules, inner), root / f"{name}.pt")
        assert base.base_head is not None
        heads.append(replace(base.base_head, name=name))
    ae.build(base, heads, root / "bundle", variants=("slots",), without_base_head=True)
    return root


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from the library, for option names in old folders
@pytest.mark.parametrize("name", TAKEN)
def test_bundles_give_the_vectors_of_sentence_transformers(name: str, library: Any, taken: Path) -> None:
    expected = library.SentenceTransformer(str(taken / name), device="cpu", local_files_only=True).encode(TEXTS)
    found = answered(ae.open_bundle(taken / "bundle"), name)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_sentence_folder_keeps_prompts_and_base_head(library: Any, minilm_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", minilm_folder, {"pooling_mode": "mean"}, [("Normalize", {})])
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    expected = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(TEXTS)
    heard = Heard()
    base = ae.capture(folder, tmp_path / "model.pt", reporter=heard)
    notes = heard.notes
    assert base.base_head is not None
    assert base.base_head.head is not None
    assert base.base_head.head.task is not None
    assert base.base_head.head.task.prefix == "query: "
    assert "`passage`" in notes[0]
    bundle = ae.build(base, [], tmp_path / "bundle")
    assert bundle.manifest.head == BASE_HEAD
    assert bundle.manifest.slots == ()
    assert np.abs(answered(bundle) - expected).max() < 1e-5
    ae.check(bundle, against=base).raise_for_failure()


def like_qwen3_embedding(folder: Path, minilm_folder: Path) -> Path:
    """Write a decoder that pads on the left with its end-of-text token, pools it, and has a prompt for queries."""
    options = {"vocab_size": 30522, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    small("Qwen3", **options).save_pretrained(folder)
    tokenizer = json.loads((minilm_folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [102], "tokens": ["[SEP]"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[SEP]", "eos_token": "[SEP]"}
    config |= {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 50}))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    for _, path in modules[1:]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    entries = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    prompts = {"query": "Instruct: find the answer\nQuery:", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "cosine"})
    )
    return folder


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_last_token_embedder_gives_the_vectors_of_sentence_transformers(
    library: Any, minilm_folder: Path, tmp_path: Path
) -> None:
    folder = like_qwen3_embedding(tmp_path / "folder", minilm_folder)
    base = ae.capture(folder, tmp_path / "model.pt")
    assert base.base_head is not None
    assert base.base_head.head is not None
    task = base.base_head.head.task
    assert task is not None
    assert (task.pooling, task.prefix) == ("last", "Instruct: find the answer\nQuery:")
    fresh = init_adapter(
        houlsby().with_widths(b=8), base.sites.map, name="mine", base=base.fingerprint, head=base.base_head.head
    )
    adapter = with_random_weights(fresh)
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = model.encode(TEXTS)
    assert np.abs(model.encode(TEXTS, prompt="") - expected).max() > 0.01
    with ae.attach(model[0].model, replace(adapter, head=None)):
        adapted = model.encode(TEXTS)
    bundle = ae.build(base, [adapter], tmp_path / "bundle", variants=GRAPH_VARIANTS)
    # vectors of length 1 after one layer in float32
    assert np.abs(answered(bundle, "base-head") - expected).max() < 1e-5
    assert np.abs(answered(bundle, "mine") - adapted).max() < 1e-5
    assert np.abs(adapted - expected).max() > 0.05


def in_config(path: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / path).read_text()) if (folder / path).is_file() else {}
        (folder / path).write_text(json.dumps({**config, **changes}))

    return change


def last_module(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[-1]["type"] = kind
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def pickled(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


def prompted(folder: Path) -> None:
    in_config("1_Pooling/config.json", include_prompt=False)(folder)
    in_config("config_sentence_transformers.json", prompts={"query": "query: "})(folder)


ROOT = {"pooling_mode_mean_sqrt_len_tokens": True}
LEFT_OUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "root": (in_config("1_Pooling/config.json", pooling_mode="mean_sqrt_len_tokens"), "found `mean_sqrt_len_tokens`"),
    "two poolings": (in_config("1_Pooling/config.json", pooling_mode=["mean", "cls"]), "found `mean` and `cls`"),
    "old flags": (in_config("1_Pooling/config.json", pooling_mode=None, **ROOT), "found `mean_sqrt_len_tokens`"),
    "another module": (last_module("sentence_transformers.models.LSTM"), "found `LSTM`"),
    "code of its own": (last_module("mine.Dense"), "a module that heads do not support"),
    "a pickle": (pickled, "no weights in a safe format"),
    "lowercase": (in_config("sentence_bert_config.json", do_lower_case=True), "lowercases texts"),
    "prompts": (prompted, "excludes the tokens of a prompt"),
    "an activation": (in_config("2_Dense/config.json", activation_function="torch.nn.PReLU"), "found `torch.nn.PReLU`"),
    "a residual": (in_config("2_Dense/config.json", use_residual=True), "does not read the preceding one"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_unsupported_heads_are_named_and_never_approximated(name: str, minilm_folder: Path, tmp_path: Path) -> None:
    dense: Modules = [("Dense", {"out_features": 24, "activation_function": "Tanh"})]
    folder = folder_of(tmp_path / "folder", minilm_folder, {"pooling_mode": "mean"}, dense)
    change, named = LEFT_OUT[name]
    change(folder)
    found = read_sentence_folder(folder)
    assert found is not None
    assert found.sentence is None
    assert named in found.reason
    if name == "root":
        base = open_folder(folder)
        assert base.base_head is None
        assert base.notes[0].startswith(
            "the head of `modules.json` is left out: has a pooling that heads do not support"
        )
        assert "found `mean_sqrt_len_tokens`" in base.notes[0]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "does not start with a transformer"),
        (
            [{"type": "sentence_transformers.models.BoW", "path": "0_BoW"}],
            "does not start with a transformer; found `BoW`",
        ),
        ([{"type": "sentence_transformers.models.Transformer", "path": "../../etc"}], "module that cannot be read"),
        (["Transformer"], "module that cannot be read"),
    ],
)
def test_folders_without_a_transformer_are_refused(modules: list[Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BaseModelError, match=message):
        ae.open_base(tmp_path)


def test_invalid_modules_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(InputError, match="not valid JSON"):
        ae.open_base(tmp_path)
