"""Folders of sentence-transformers: a model, followed by modules that turn its result into embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from adapter_export.errors import BaseModelError, InputError
from adapter_export.graph.tasks import Task
from adapter_export.safe_io.documents import read_json
from adapter_export.torch_backend.base.sentences.late_interaction import LateInteraction
from adapter_export.torch_backend.base.sentences.reranker import Reranker
from adapter_export.torch_backend.base.sentences.sentence_modules import (
    Module,
    Normalize,
    SentenceModules,
    read_config,
    read_sentence,
    read_splade,
    read_token_layers,
)
from adapter_export.words import quoted

MODULES_FILE = "modules.json"

_SETTINGS = "config_sentence_transformers.json"
_LOGITS = "causal_logits"

_TRANSFORMERS, _PACKAGES = ("Transformer", "MLMTransformer"), ("sentence_transformers.", "pylate.")
"""Classes of the model, and libraries whose modules are read by the names of their classes."""


@dataclass(frozen=True)
class SentenceFolder:
    """A folder of sentence-transformers.

    Attributes:
        model: folder of the model, the same folder or one inside it.
        sentence: the modules after the model; `None` if they cannot be expressed, for the `reason`.
        reranker: computes a score from the model's logits, for a cross-encoder that is a language model.
        max_tokens: maximum length of its texts, if recorded.
        prefix: default prefix of each text.
        prompts: names of other prompts, which callers add themselves.
        facts: more facts of the task.
        notes: differences to the original model.
    """

    model: Path
    sentence: SentenceModules | None = None
    reranker: Reranker | None = None
    reason: str = ""
    max_tokens: int | None = None
    prefix: str = ""
    prompts: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def chat_settings(self) -> Mapping[str, Any]:
        """Arguments that sentence-transformers passes to a chat template, except its own."""
        found = _text_config(self.model).get("processing_kwargs")
        given = found.get("chat_template") if isinstance(found, dict) else None
        known = given if isinstance(given, dict) else {}
        return {name: value for name, value in known.items() if name != "restore_suffix"}

    def task(self) -> tuple[Task, tuple[str, ...]]:
        """Return the task of its vectors, and notes."""
        assert self.sentence is not None
        notes = self.notes
        if self.prompts:
            named = quoted(self.prompts)
            notes += (f"texts get no prompt; prepend the prompts {named} yourself",)
        facts = {"max_tokens": self.max_tokens, "prefix": self.prefix, **self.sentence.task_facts(), **self.facts}
        return Task(self.sentence.task_type, **facts), notes


def read_sentence_folder(folder: Path) -> SentenceFolder | None:
    """Read the modules of a folder of sentence-transformers; return `None` for any other folder.

    Raises:
        BaseModelError: it has no transformers model.
        InputError: `modules.json` cannot be read.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    modules = [_module(entry, folder) for entry in _list(read_json(path))]
    if not modules or modules[0][0] not in _TRANSFORMERS:
        raise BaseModelError(
            "is a sentence-transformers model that does not start with a transformer",
            where=path,
            found=f"`{modules[0][0]}`" if modules else "no modules",
            expected="`Transformer`",
        )
    model = modules[0][1]
    try:
        if [name for name, _ in modules] == ["Transformer", "LogitScore"]:
            reranker = _reranker(modules[1][1], model)
            return SentenceFolder(model, reranker=reranker, max_tokens=_max_tokens(model))
        if _text_config(model).get("do_lower_case"):
            raise BaseModelError("lowercases texts before the tokenizer sees them", found="`do_lower_case`")
        late = LateInteraction.of(read_config(folder / _SETTINGS), _text_config(model), modules, model)
        return _embedder(folder, model, modules[1:]) if late is None else _token_embedder(late, model, modules[1:])
    except InputError as error:
        return SentenceFolder(model, reason=error.message.rstrip("."))


def _embedder(folder: Path, model: Path, modules: Sequence[Module]) -> SentenceFolder:
    """Return a folder whose model has one vector for each text, dense or sparse."""
    prefix, prompts = _prompts(folder)
    if [name for name, _ in modules] == ["SpladePooling"]:
        if read_config(folder / _SETTINGS).get("max_active_dims"):
            raise BaseModelError("keeps only the largest weights of a vector", found="`max_active_dims`")
        return SentenceFolder(model, read_splade(modules[0][1]), None, "", _max_tokens(model), prefix, prompts)
    sentence, pools_prompts = read_sentence(modules)
    if not pools_prompts and any((prefix, *prompts)):
        raise BaseModelError("excludes the tokens of a prompt from pooling", found="`include_prompt` false")
    return SentenceFolder(model, sentence, None, "", _max_tokens(model), prefix, prompts)


def _token_embedder(late: LateInteraction, model: Path, modules: Sequence[Module]) -> SentenceFolder:
    """Return a folder whose model has a vector for each token."""
    late.check()
    layers = read_token_layers(modules, pins_inputs=not late.is_pylate)
    if late.is_pylate:
        layers.layers.append(Normalize())
    return SentenceFolder(model, layers, max_tokens=_max_tokens(model), facts=late.task_facts(), notes=late.notes)


def _list(document: object) -> list[Any]:
    return document if isinstance(document, list) else []


def _module(entry: object, folder: Path) -> Module:
    """Return the class of a module and its folder, which is inside the model's."""
    if isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str):
        place = folder / entry["path"]
        if place.resolve().is_relative_to(folder.resolve()):
            return entry["type"].rpartition(".")[2] if entry["type"].startswith(_PACKAGES) else "", place
    raise BaseModelError("has a module that cannot be read", where=folder / MODULES_FILE, found=f"`{entry}`"[:200])


def _reranker(place: Path, model: Path) -> Reranker:
    """Read a `LogitScore`."""
    config = read_config(place / "config.json")
    positive, negative = config.get("true_token_id"), config.get("false_token_id")
    good = isinstance(positive, int) and isinstance(negative, int | None)
    if not good or config.get("module_input_name", _LOGITS) != _LOGITS:
        raise BaseModelError("has a `LogitScore` that heads do not support", where=place, found=f"`{config}`"[:200])
    modalities = _text_config(model).get("modality_config")
    templated = isinstance(modalities, dict) and "message" in modalities
    return Reranker.of(cast(int, positive), negative, templated=templated)


def _text_config(model: Path) -> Mapping[str, Any]:
    """Return the text settings of the model; the file name depends on the architecture."""
    return next((read_config(path) for path in sorted(model.glob("sentence_*_config.json"))), {})


def _max_tokens(model: Path) -> int | None:
    found = _text_config(model).get("max_seq_length")
    if not isinstance(found, int):
        found = read_config(model / "tokenizer_config.json").get("model_max_length")
    return found if isinstance(found, int) and 0 < found < 2**31 else None


def _prompts(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the default prefix of every text, and the names of the other prompts that are not empty."""
    config = read_config(folder / _SETTINGS)
    prompts = config.get("prompts") or {}
    texts = {name: text for name, text in prompts.items() if isinstance(text, str) and text}
    default = config.get("default_prompt_name")
    return texts.get(default, ""), tuple(name for name in texts if name != default)
