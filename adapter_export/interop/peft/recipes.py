"""How the models of transformers classify a text: what a folder of PEFT does not say, and no tensor shows.

Two heads of the same shapes differ in their activation (`tanh` in RoBERTa, `gelu` in ELECTRA), and a lone linear layer
reads the pooled first token in BERT and the bare one in ViT. So this is a table, by the name that transformers gives
the base inside such a model, which stands before every module path of the adapter. Models outside the table are read
when the user says what their heads do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A head: `classes(f(dense(pool(hidden))))`, or `classes(pool(hidden))`.

    Attributes:
        pooling: `first` or `mean`.
        dense: the path of the dense layer, in the head or in the base; none if there is none.
        activation: what stands behind it.
        classes: the path of the last layer; any one if none is named.
    """

    pooling: str
    dense: str | None = None
    activation: str = "tanh"
    classes: str | None = None


_DENSE_HEAD = Recipe("first", "classifier.dense", "tanh", "classifier.out_proj")
_BARE = Recipe("first", classes="classifier")

RECIPES: Mapping[str, Recipe] = {
    "bert": Recipe("first", "bert.pooler.dense", "tanh", "classifier"),
    "albert": Recipe("first", "albert.pooler", "tanh", "classifier"),
    "roberta": _DENSE_HEAD,  # XLM-RoBERTa and CamemBERT, too
    "longformer": _DENSE_HEAD,
    "mpnet": _DENSE_HEAD,
    "esm": _DENSE_HEAD,
    "electra": Recipe("first", "classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": Recipe("first", "pre_classifier", "relu", "classifier"),
    "vit": _BARE,
    "deit": _BARE,
}
"""Heads for one class per text or image, as transformers 5 has them, in `modeling_<name>.py`."""
