"""Module paths: one prefix may differ, and nothing is taken for something else."""

from __future__ import annotations

import pytest

from adapter_export.errors import AdapterError
from adapter_export.interop.peft.paths import Renaming, find_renaming

LAYERS = [f"encoder.layer.{layer}.{name}" for layer in range(2) for name in ("query", "output.dense", "value")]


def below(prefix: str) -> list[str]:
    return [f"{prefix}.{path}" for path in LAYERS]


@pytest.mark.parametrize(
    ("adapter", "base", "expected"),
    [
        (LAYERS, LAYERS, Renaming()),
        (LAYERS[:1], LAYERS, Renaming()),
        (below("bert"), LAYERS, Renaming(drop="bert")),
        (below("model.bert"), LAYERS, Renaming(drop="model.bert")),
        (LAYERS, below("model"), Renaming(add="model")),
        (LAYERS, below("0.auto_model"), Renaming(add="0.auto_model")),
        (below("bert"), below("model.bert"), Renaming(add="model")),
        (["h.0.c_attn"], ["transformer.h.0.c_attn", "other.c_attn"], Renaming(add="transformer")),
        (["layers.0.q", "layers.1.q"], ["layers.0.q", "layers.1.q", "x.layers.0.q"], Renaming()),
        ([*below("bert"), "bert.pooler.dense"], LAYERS, Renaming(drop="bert")),
    ],
)
def test_what_stands_before_the_paths(adapter: list[str], base: list[str], expected: Renaming) -> None:
    found = find_renaming(adapter, base, "a")
    assert found == expected
    for path in adapter:
        if found(path) in base:
            assert found.back(found(path) or "") == path


@pytest.mark.parametrize(
    ("adapter", "base", "words"),
    [
        (["decoder.block.0.q"], ["encoder.block.0.q"], "does not have"),
        (["encoder.layer.5.query"], ["encoder.layer.0.query"], "does not have"),
        (["layers.5.query"], ["query"], "does not have"),
        (["bert.encoder.layer.0.query"], ["model.encoder.layer.0.query"], "does not have"),
        (["query"], ["layers.0.query", "layers.1.query"], "cannot be told apart"),
        (["block.0.q"], ["encoder.block.0.q", "decoder.block.0.q"], "not `decoder` and `encoder`"),
        (["encoder.q", "decoder.q"], ["q"], "cannot be told apart"),
        (["a.query"], [], "this one has none"),
    ],
)
def test_what_is_not_the_same_module(adapter: list[str], base: list[str], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        find_renaming(adapter, base, "a")


def test_paths_beside_the_prefix_have_no_counterpart() -> None:
    assert Renaming(drop="bert")("classifier") is None
    assert Renaming(drop="bert")("bertha.x") is None
    assert Renaming(add="model")("classifier") == "model.classifier"
    assert Renaming(add="model").back("other.x") is None
