"""Small models of sentence-transformers with sparse vectors or a vector for each token, saved by that library."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from toolchain import skip_or_fail
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

WORDS = ("good", "fine", "bad", "dull", "film", "play", "a", "the", "was", "very", "this", "and", "who", "##s", "##ly")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MARKERS = ("[Q] ", "[D] ")
QUERIES = ["good film", "who was dull?", "the play", "[unknown] badly"]
DOCUMENTS = ["a very good, fine film.", "this play was dull and bad!", "films, plays; and a good play.", "dull"]


def library() -> Any:
    """Return sentence-transformers."""
    try:
        import sentence_transformers
    except ModuleNotFoundError:
        skip_or_fail("sentence-transformers is missing: run `make setup`, or `pip install sentence-transformers`")
    return sentence_transformers


def save_model(folder: Path, model_class: type, vocabulary: int | None = None) -> Path:
    """Save a small BERT with random weights of standard deviation 0.2, and its tokenizer."""
    folder.mkdir(parents=True)
    words = [*SPECIAL, *string.punctuation, *string.ascii_lowercase, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    size = vocabulary or len(words) + len(MARKERS)
    config = BertConfig(initializer_range=0.2, max_position_embeddings=64, vocab_size=size, **sizes)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_splade(folder: Path, activation: str = "relu", vocabulary: int | None = None) -> Path:
    """Save a sparse encoder with the library itself."""
    sentence_transformers = library()
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    inner = save_model(folder.parent / f"{folder.name}-model", BertForMaskedLM, vocabulary)
    modules = [MLMTransformer(str(inner), _from_auto_load=True), SpladePooling("max", activation)]
    sentence_transformers.SparseEncoder(modules=modules, device="cpu").save(str(folder))
    return folder


def save_colbert(folder: Path, width: int = 8, **settings: Any) -> Path:
    """Save an encoder with markers, a projection without bias, a skip list and vectors of length 1."""
    sentence_transformers = library()
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

    inner = save_model(folder.parent / f"{folder.name}-model", BertModel)
    transformer = Transformer(str(inner), **settings)
    transformer.tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    torch.manual_seed(1)
    projection = torch.nn.init.normal_(torch.empty(width, 32), std=0.2)
    dense = Dense(
        32,
        width,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=projection,
        module_input_name="token_embeddings",
    )
    modules = [transformer, dense, MultiVectorMask(list(string.punctuation)), Normalize("token_embeddings")]
    prompts = dict(zip(("query", "document"), MARKERS, strict=True))
    sentence_transformers.MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save(str(folder))
    return folder
