"""Hugging Face folders as bases. Importing this module needs transformers, which fetches nothing here."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.utils import logging as transformers_log

from adapter_export.errors import BaseModelError, FileError, InputError, RequestError, UsageError, or_else, within
from adapter_export.format.lengths import Bounds
from adapter_export.format.manifest import InputRecord
from adapter_export.format.media import PROCESSOR_FILE, CapturedMedia
from adapter_export.format.model_config import CLASS_TYPES, class_type, head_task
from adapter_export.graph.tasks import Task
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.sites.view import HEAD_INPUT
from adapter_export.text import Side, tokenizer_digest
from adapter_export.torch_backend.base.base_head import EMBEDDING, BaseHead, base_head
from adapter_export.torch_backend.base.cached_models import (
    CAPTURE_BARE,
    MEDIA_INPUT,
    CachedDecoder,
    CachedMediaSeq2Seq,
    CachedSeq2Seq,
    fix_sizes,
)
from adapter_export.torch_backend.base.capture_module import live, most_tokens
from adapter_export.torch_backend.base.example_inputs import Examples, Prepared, described_inputs, obvious_inputs
from adapter_export.torch_backend.base.folder_size import bounded_model, check_config
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.torch_backend.base.own_processors import own_media, own_texts, prepared_by
from adapter_export.torch_backend.base.sentences.reranker import Reranker
from adapter_export.torch_backend.base.sentences.sentence_folder import (
    MODULES_FILE,
    SentenceFolder,
    read_sentence_folder,
)
from adapter_export.torch_backend.base.torch_base import TorchBase, captured_base, load_base, write_base
from adapter_export.torch_backend.own_chat import own_chat
from adapter_export.torch_backend.own_generation import GENERATION_FILE, check_generation, own_generation, unheeded
from adapter_export.words import argument, joined, quoted


def capture_folder(
    folder: Path,
    path: Path,
    *,
    inputs: Sequence[InputRecord] = (),
    bare: bool = False,
    lengths: Bounds | None = None,
    source: str | None = None,
    reranker_tokens: Sequence[str] = (),
    prompt: str = "",
    force: bool = False,
) -> None:
    """Save the model of a Hugging Face folder as a base, with its tokenizer and its base head; works offline.

    The folder contains `config.json` and `model.safetensors`, and optionally `tokenizer.json`; or it is a folder of
    sentence-transformers, with such a folder and a `modules.json`. The model has the class in `architectures`, in
    float32. If that class generates text (see `generates`), the base is its `CachedDecoder` or `CachedSeq2Seq` with the
    language head, which generates according to `TorchBase.generation`.

    With `bare`, for a reranker and for any other class, a class with a head is reduced to the bare model. Its inputs
    are `inputs`, or those of `obvious_inputs` with tokenizer and processor. A pooler without weights in the folder is
    removed. The base head is what the class in `config.json` or the modules compute from the final hidden state; a head
    that cannot be expressed is left out, with a note. `lengths` are as for `captured_base`, and `source` as for
    `TorchBase`.

    Raises:
        FileError: the folder or a file in it is missing.
        UsageError: the described inputs do not match the model, or it generates and defines its inputs itself.
        BaseModelError: the model cannot be opened or exported, or required weights are missing.
        OutputExistsError, WriteError: as for `write_base`.
    """
    if bare or reranker_tokens or prompt or not generates(folder):
        base = _captured_model(folder, inputs, lengths, reranker_tokens, prompt, bare=bare)
    elif inputs:
        raise UsageError(
            "generates text, and is captured with a cache, which defines its inputs",
            where=folder,
            found=argument("inputs", option="input"),
            fix="remove it, or " + CAPTURE_BARE,
        )
    else:
        base = _captured_generator(folder, lengths)
    write_base(replace(base, source=source), path, force=force)


def generates(folder: Path) -> bool:
    """Return whether the class in a folder's `architectures` is a language model that generates text.

    False for a folder of sentence-transformers: it embeds or ranks texts.
    """
    if (folder / MODULES_FILE).is_file():
        return False
    config = _json(folder / "config.json")
    name = _class_name(config)
    known = _class(name, config.get("model_type"))
    if known is None:
        return _LANGUAGE_HEAD.search(name) is not None
    return known.can_generate() and _has_a_head(name, known)


def _has_a_head(name: str, known: Any) -> bool:
    """Return whether a class has a head on a bare model; `MarianMTModel` has one that its name does not show."""
    of_texts = any(known.config_class in mapping for mapping in _OF_TEXTS)
    return _WITH_A_HEAD.search(name) is not None or (of_texts and known.can_generate())


def _captured_model(
    folder: Path,
    described: Sequence[InputRecord],
    lengths: Bounds | None,
    tokens: Sequence[str],
    prompt: str,
    *,
    bare: bool,
) -> TorchBase:
    """Capture the bare model of a folder, with its base head and its processor."""
    sentences = read_sentence_folder(folder)
    folder = folder if sentences is None else sentences.model
    if bare and sentences is not None and sentences.sentence is not None and sentences.sentence.reads == _LOGITS:
        sentences = None
    _check_files(folder)
    reranker = Reranker.named(folder, tokens) if tokens else None if sentences is None else sentences.reranker
    if prompt and reranker is None:
        fix = "pass the tokens of its answer as " + argument("reranker_tokens", "yes,no") + ", or remove the prompt"
        raise UsageError(argument("prompt") + " applies to rerankers only", where=folder, fix=fix)
    if reranker is not None and prompt:
        told, reranker = reranker.reason, reranker.prompted(prompt)
        if told and sentences is not None and not tokens:
            reranker.check_chat_template(folder, sentences.chat_settings)
    with captured_logs(), quiet_transformers():
        media, media_notes = own_media(folder)
        prepared = Prepared() if described else prepared_by(folder)

    def examples(model: nn.Module) -> Examples | None:
        return described_inputs(described) if described else obvious_inputs(model, prepared)

    # the complete model first, so that two models are never in memory
    base_head = _base_head(folder, sentences, media, examples, reranker)
    model, unused = _open_sentence_base(folder, sentences)
    example = examples(model)
    if example is None:
        raise BaseModelError(
            "has inputs that neither its files nor its documentation describe",
            where=folder,
            found=f"`{type(model).__name__}.forward`: {', '.join(inspect.signature(model.forward).parameters)}",
            expected=argument("inputs", ["NAME=TYPE[AXIS,…]"], option="input") + " for each input",
            fix="describe them, such as " + argument("inputs", ["input_values=float32[batch,samples]"], option="input"),
        )
    if media is not None and list(example[0]) != [media.record.input]:
        others = quoted(example[0])
        media, media_notes = None, ("the processor is left out: it makes one input, but the model has " + others,)
    base = _captured(model, example, folder, lengths, most_tokens(model))
    head, head_notes = base_head.of(base, model=type(model).__name__, unused=unused)
    if tokens and head is None:
        raise BaseModelError(
            "cannot score with two tokens", where=folder, found=base_head.reason or joined(head_notes, "; ")
        )
    return replace(base, base_head=head, media=media, notes=(*base.notes, *head_notes, *media_notes))


def _captured_generator(folder: Path, lengths: Bounds | None) -> TorchBase:
    """Capture a language model for generation, with its language head and a cache."""
    model = _open_generator(folder)
    media, media_notes = _own_windows(folder, model)
    module = _with_cache(model, media)
    generation, most = own_generation(model, folder), most_tokens(model)
    if model.config.is_encoder_decoder and generation.start is None:
        raise BaseModelError(
            "does not record its decoder's start token",
            where=folder / GENERATION_FILE,
            expected="a `decoder_start_token_id`, or a `bos_token_id`",
            fix="add the one the model was trained with, or " + CAPTURE_BARE,
        )
    with within(folder), captured_logs(), quiet_transformers():
        examples = module.example_inputs()
    if isinstance(module, CachedMediaSeq2Seq):
        with captured_logs(), quiet_transformers(), or_else(CAPTURE_BARE):
            check_generation(model, generation, module.shape, folder)
    with or_else(CAPTURE_BARE):
        base = _captured(module, examples, folder, lengths, most)
    if not isinstance(module, CachedDecoder):
        # before the steps are checked: the second has no encoder tokens
        fix_sizes(base.program)
        with within(folder), captured_logs(), quiet_transformers():
            module.check_steps(base.program)
        base = replace(base, lengths=module.lengths(base.lengths, most))
    with captured_logs(), quiet_transformers():
        chat, notes = own_chat(folder, most)
    notes = (*base.notes, *unheeded(model), *notes, *media_notes)
    return replace(base, generation=generation, chat=chat, media=media, notes=notes)


def _open_generator(folder: Path) -> Any:
    """Return the language model of a folder with its language head: a decoder or an encoder–decoder."""
    _check_files(folder)
    _check_custom_class(folder)
    with captured_logs(), quiet_transformers(), parsing(partial(_not_opened, folder)):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    autos = [auto for mapping, auto in _GENERATORS[bool(config.is_encoder_decoder)] if type(config) in mapping]
    if not autos:
        raise BaseModelError(
            "generates from other inputs than tokens and sound, and cannot be captured with a cache",
            where=folder,
            found=f"`{config.model_type}`",
            expected="a decoder, or an encoder–decoder of texts or sound",
            fix=CAPTURE_BARE,
        )
    with or_else(CAPTURE_BARE):
        model, _ = _open(folder, autos[0])
    return model


def _own_windows(folder: Path, model: Any) -> tuple[CapturedMedia | None, tuple[str, ...]]:
    """Return the processor of a model whose encoder reads files, and notes; `None` for a model of tokens."""
    if not model.config.is_encoder_decoder or model.main_input_name == "input_ids":
        return None, ()
    with captured_logs(), quiet_transformers():
        media, notes = own_media(folder)
    if media is None or media.record.input != model.main_input_name or media.golden is None:
        reason = "; ".join(notes) or f"no `{PROCESSOR_FILE}`"
        raise BaseModelError(
            "reads files, and has no processor whose steps are known",
            where=folder,
            found=reason,
            fix="save the processor beside the model with `processor.save_pretrained(folder)`, or " + CAPTURE_BARE,
        )
    if len({sample.shape for sample in media.golden.samples}) > 1:
        raise BaseModelError(
            "has an encoder whose input has several lengths, which cannot be captured with a cache",
            where=folder,
            found=f"`{model.config.model_type}`",
            expected="an encoder of windows of one length, such as Whisper's",
            fix=CAPTURE_BARE,
        )
    return replace(media, record=replace(media.record, input=MEDIA_INPUT)), notes


def _with_cache(model: Any, media: CapturedMedia | None) -> CachedDecoder | CachedSeq2Seq | CachedMediaSeq2Seq:
    if media is not None and media.golden is not None:
        return CachedMediaSeq2Seq(model, media.golden.samples[0].shape)
    return CachedSeq2Seq(model) if model.config.is_encoder_decoder else CachedDecoder(model)


def _captured(
    module: nn.Module, examples: Examples, folder: Path, lengths: Bounds | None, max_tokens: int | None
) -> TorchBase:
    """Capture a module with the tokenizer of its folder, and that tokenizer's ids of golden texts."""
    with captured_logs(), quiet_transformers():
        texts, notes = own_texts(folder, max_tokens)
    inputs, axes = examples
    base = captured_base(module, inputs, axes=axes, lengths=lengths, max_tokens=max_tokens)
    tokenizer = folder / "tokenizer.json"
    text = read_text(tokenizer) if tokenizer.is_file() else None
    return replace(base, tokenizer=text, texts=texts, notes=(*base.notes, *notes))


def open_folder(
    folder: Path, *, inputs: Sequence[InputRecord] = (), bare: bool = False, lengths: Bounds | None = None
) -> TorchBase:
    """Open the model of a Hugging Face folder as a base; arguments and errors as for `capture_folder`."""
    with temporary_folder() as temporary:
        path = temporary / "base.pt"
        capture_folder(folder, path, inputs=inputs, bare=bare, lengths=lengths)
        return load_base(path)


def live_folder(folder: Path, base: TorchBase) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs the folder's model in transformers, instead of its capture.

    It returns the outputs by the base's names, or raises RequestError for inputs that the model cannot compute.

    Raises:
        BaseModelError: the model cannot be opened, or cannot run with inputs of these names.
    """
    return _live_outputs(folder, base)


def changed_folder(
    folder: Path, base: TorchBase, change: Callable[[nn.Module], object], head: tuple[Sequence[str], int] | None
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs the folder's model in transformers after a change, such as loading an adapter.

    Without a `head`, its outputs are those of `live_folder`. With one, `logits` is its only output; `head` contains the
    suffixes of the names of classes with such a head, such as `ForSequenceClassification`, and the number of results.

    Raises:
        BaseModelError: as for `live_folder`; or the change fails.
    """

    def changed(model: nn.Module) -> nn.Module:
        try:
            with captured_logs(), quiet_transformers():
                change(model)
        except LIBRARY_ERRORS as error:
            raise BaseModelError("cannot be changed this way", where=folder, found=first_line(error)) from error
        return model.eval()

    if head is None:
        return _live_outputs(folder, base, changed)
    endings, count = head
    with parsing(partial(_not_opened, folder)):
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, num_labels=count)
    autos: list[Any] = [getattr(transformers, f"AutoModel{ending}", None) for ending in endings]
    auto = next((one for one in autos if one is not None and type(config) in one._model_mapping), None)
    if auto is None:
        raise BaseModelError("transformers has no class with such a head", where=folder, found=quoted(endings))
    with captured_logs(), quiet_transformers(), parsing(partial(_not_opened, folder)):
        model = auto.from_pretrained(str(folder), config=config, local_files_only=True, dtype=torch.float32)
    whole: Any = changed(model)

    def logits(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad(), captured_logs(), quiet_transformers():
            found = whole(**{name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})
        spans = (found.get("start_logits"), found.get("end_logits"))
        values: Tensor = found.logits if "logits" in found else torch.stack(spans, -1)
        return {"logits": values.numpy()}

    return logits


def _live_outputs(
    folder: Path, base: TorchBase, change: Callable[[nn.Module], object] = nn.Module.eval
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs the folder's model after a change, with the inputs and outputs of a base."""
    model: nn.Module
    inputs: Mapping[str, Any]
    if any(record.role == "cache" for record in base.inputs):
        whole = _open_generator(folder)
        change(whole)
        model = _with_cache(whole, base.media)
        with captured_logs(), quiet_transformers():
            inputs, _ = model.example_inputs()
    else:
        sentences = read_sentence_folder(folder)
        model, _ = _open_sentence_base(folder if sentences is None else sentences.model, sentences)
        change(model)
        inputs = {record.name: torch.empty(0) for record in base.inputs}
    try:
        run = live(model, inputs)
    except UsageError as error:
        raise BaseModelError(error.what, found=error.found, expected=error.expected) from error

    def arrays(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        try:
            with torch.no_grad(), captured_logs(), quiet_transformers():
                values = run(tensors)
        except LIBRARY_ERRORS as error:
            raise RequestError("the live model cannot compute these inputs", found=first_line(error)) from error
        return {record.name: value.numpy() for record, value in zip(base.outputs, values, strict=True)}

    return arrays


def _base_head(
    folder: Path,
    sentences: SentenceFolder | None,
    media: CapturedMedia | None,
    examples: Callable[[nn.Module], Examples | None],
    reranker: Reranker | None,
) -> BaseHead:
    """Return the head of the folder's complete model, from its modules or the class in its config; or the reason."""
    config, cut = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    name = MODULES_FILE if sentences else _class_name(config)
    tokenizer = folder / "tokenizer.json"
    try:
        if reranker is not None:
            whole = reranker.behind(_open(folder, AutoModelForCausalLM)[0])
        else:
            whole = _with_class(folder, name) if sentences is None else _with_modules(folder, sentences)
        digest = tokenizer_digest(read_text(tokenizer)) if tokenizer.is_file() else None
    except InputError as error:
        return BaseHead(name, reason=error.message.rstrip("."))

    def task_of(width: int) -> tuple[Task | None, Sequence[str]]:
        task: Task | None
        notes: Sequence[str]
        if reranker is not None:
            task, notes = reranker.task(config, None if sentences is None else sentences.max_tokens)
        else:
            task, notes = head_task(config, name, width) if sentences is None else sentences.task()
        if task is None:
            return None, notes
        if media is not None and task.kind.reads_files:
            return replace(task, input=media.record.medium, processor=media.record.digest), notes
        side: Side = "left" if cut.get("truncation_side") == "left" else "right"
        return replace(task, tokenizer=digest, truncation=side), notes

    outputs = ["logits"] if sentences is None or reranker is not None else [EMBEDDING]
    if class_type(name) == "span":
        outputs = ["start_logits", "end_logits"]
    with quiet_transformers():
        return base_head(whole, name, outputs, task_of, examples(whole))


def _class_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty if the file is missing, because other readers report that."""
    with suppress(InputError):
        document = read_json(path)
        return document if isinstance(document, dict) else {}
    return {}


def _with_class(folder: Path, name: str) -> nn.Module:
    """Return the model with its head, of the class with this name; multiple-choice classes read one choice per row."""
    if class_type(name) is None:
        raise BaseModelError(
            "its class has no head with a known task", expected=f"a class ending in {', '.join(CLASS_TYPES)}"
        )
    head_class = _class(name, _json(folder / "config.json").get("model_type"))
    if head_class is None:
        raise BaseModelError(
            "the installed transformers does not have this class", found=f"transformers {transformers.__version__}"
        )
    model, missing, _ = _load(folder, head_class)
    if missing:
        raise BaseModelError("the folder lacks its weights", found=quoted(missing[:3]))
    if class_type(name) == "multiple_choice":
        model.register_forward_pre_hook(one_choice, with_kwargs=True)
    return model


def one_choice(_module: nn.Module, given: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the inputs of rows as those of texts with one choice each; a hook before `forward`."""
    return given, {name: value.unsqueeze(1) for name, value in inputs.items()}


def _with_modules(folder: Path, sentences: SentenceFolder) -> nn.Module:
    """Return the model followed by the modules of sentence-transformers."""
    sentence = sentences.sentence
    if sentence is None:
        raise BaseModelError(sentences.reason)
    model, _ = _open(folder, sentence.model_class)
    model.add_module("sentence", sentence)

    def behind(_module: nn.Module, _given: object, inputs: dict[str, Any], output: Any) -> dict[str, Tensor]:
        value = output[sentence.reads]
        vocabulary = {HEAD_INPUT: value} if sentence.reads == _LOGITS else {}
        return {EMBEDDING: sentence(value, inputs["attention_mask"]), **vocabulary}

    model.register_forward_hook(behind, with_kwargs=True)
    return model.eval()


def _open_sentence_base(folder: Path, sentences: SentenceFolder | None) -> tuple[nn.Module, list[str]]:
    """Return the model of a folder without its head; of a sparse embedding, with its logits of the vocabulary."""
    modules = None if sentences is None else sentences.sentence
    if modules is None or modules.reads != _LOGITS:
        return _open_base(folder)
    _check_custom_class(folder)
    model, unused = _open(folder, modules.model_class)
    model.register_forward_hook(_vocabulary_logits)
    return model.eval(), unused


def _vocabulary_logits(_module: nn.Module, _given: object, output: Any) -> dict[str, Tensor]:
    return {HEAD_INPUT: output[_LOGITS]}


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileError(
            "is not a Hugging Face folder",
            where=folder,
            found="no `config.json`" if folder.is_dir() else "no folder",
            expected="a folder with `config.json` and `model.safetensors`",
            fix="check the path",
        )
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    raise BaseModelError(
        "has no weights in a safe format",
        where=folder,
        found=f"`{pickles[0]}`, a pickle, which could run code" if pickles else "no weights",
        expected="`model.safetensors`",
        fix="save the model again with `model.save_pretrained(folder)`, which writes safetensors",
    )


def _class(name: str, architecture: object) -> type[transformers.PreTrainedModel] | None:
    """Return the transformers class with this name for a `model_type`, even if only its models' module has it."""
    known: Any = transformers.CONFIG_MAPPING
    words = str(architecture).split("_")  # parts have types, such as `moonshine_streaming_encoder`
    types = ("_".join(words[:end]) for end in range(len(words), 0, -1))
    model_class: Any = getattr(transformers, name, None)
    for one in types if model_class is None else ():
        bare: Any = transformers.MODEL_MAPPING.get(known[one], None) if one in known else None
        bare = bare[0] if isinstance(bare, tuple) else bare
        model_class = model_class or getattr(sys.modules.get(str(getattr(bare, "__module__", None))), name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, transformers.PreTrainedModel):
        return None
    own: Any = getattr(model_class, "config_class", None)
    fits = getattr(own, "model_type", None) == architecture
    return (
        model_class
        if fits or (own is not None and architecture in known and issubclass(known[architecture], own))
        else None
    )


def named_class(folder: Path) -> type[transformers.PreTrainedModel]:
    """Return the class of transformers that a folder's `architectures` names; its weights are safetensors.

    Raises:
        FileError, BaseModelError: the folder is incomplete, its weights are pickles, or it names no class of
            transformers.
    """
    _check_files(folder)
    _check_custom_class(folder)
    config = _json(folder / "config.json")
    name = _class_name(config)
    named = _class(name, config.get("model_type"))
    if named is None:
        raise BaseModelError(
            "names no class of the installed transformers",
            where=folder / "config.json",
            found=f"`{name}`, and transformers {transformers.__version__}" if name else "no `architectures`",
            expected="a class in `architectures`, such as `BertForSequenceClassification`",
            fix="save the model again with `model.save_pretrained(folder)`",
        )
    return named


_LOGITS = "logits"
"""Output of language models in transformers."""

_WITH_A_HEAD = re.compile(r"For[A-Z]|Heads?Model$")
"""Words in the names of transformers classes that have a head on the bare model."""

_OF_TEXTS: Sequence[Any] = (
    transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)
"""Language models by the class of their config: decoders, and encoder–decoders."""

_GENERATORS: Mapping[bool, Sequence[tuple[Any, Any]]] = {
    False: [(transformers.MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM)],
    True: [
        (transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM),
        (transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, AutoModelForSpeechSeq2Seq),
    ],
}
"""Classes that generate texts, by whether they have an encoder, each with the configurations that it opens."""

_LANGUAGE_HEAD = re.compile(r"For(CausalLM|ConditionalGeneration|Seq2SeqLM)$|LMHeadModel$")
"""Ends of the names of classes that generate text, for classes that the installed transformers lacks."""


def _open_base(folder: Path) -> tuple[nn.Module, list[str]]:
    """Return the model of the class in `architectures`, without its head if it has one; and the rest as `_open`.

    If the bare model of the architecture has weights that the folder lacks, such as the decoder of a
    `WhisperForAudioClassification`, it is the class' model without its head, or the complete one.
    """
    _check_custom_class(folder)
    config = _json(folder / "config.json")
    name, kind = _class_name(config), config.get("model_type")
    named = _class(name, kind)
    if named is not None and not _has_a_head(name, named):
        return _open(folder, named)
    try:
        return _open(folder, AutoModel)
    except BaseModelError as error:
        if named is None:
            if name and kind in transformers.CONFIG_MAPPING:
                raise _unknown_class(folder, name, error) from error
            raise
        whole, missing, unused = _load(folder, named)
        if missing:
            raise
        base: Any = whole.base_model
        outside = set(whole.state_dict()) - {f"{whole.base_model_prefix}.{key}" for key in base.state_dict()}
        return base, unused if base is whole else sorted({*unused, *outside})


def _check_custom_class(folder: Path) -> None:
    """Reject a folder whose class only its own code defines, and a model larger than its weights."""
    config = _json(folder / "config.json")
    check_config(folder, config)
    name, kind = _class_name(config), config.get("model_type")
    if "auto_map" in config and _class(name, kind) is None:
        raise BaseModelError(
            "has a custom model class, whose code is not run",
            where=folder / "config.json",
            found=f"`auto_map`, for `{name or kind}`",
            expected="a class of the installed transformers",
            fix="if you trust that code, load the model in Python with `trust_remote_code=True` and pass it to "
            "`adapter_export.capture`",
        )


def _unknown_class(folder: Path, name: str, error: BaseModelError) -> BaseModelError:
    return BaseModelError(
        "names a class that the installed transformers does not have, and its weights do not match the bare model",
        where=folder / "config.json",
        found=f"`{name}`, and transformers {transformers.__version__}; " + error.problem(),
        expected="a class of transformers in `architectures`",
        fix="upgrade transformers, or load the model in Python and pass it to `adapter_export.capture`",
    )


def _open(folder: Path, auto: Any) -> tuple[nn.Module, list[str]]:
    """Return the model with every weight from the folder, without weights that transformers would initialize randomly.

    Also returns the names of the folder's weights that are not in the model.
    """
    model, missing, unused = _load(folder, auto)
    if missing and auto not in (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq):
        # usually the pooler's weights are missing; not every architecture has a pooler
        with suppress(BaseModelError):
            model, missing, unused = _load(folder, auto, add_pooling_layer=False)
    if missing:
        raise BaseModelError(
            "lacks weights of the model, which would be random",
            where=folder,
            found=quoted(missing[:3]) + (f" and {len(missing) - 3} more" * (len(missing) > 3)),
            expected="all weights of the model in `model.safetensors`",
            fix="save the part of the model that has weights with `ae.capture`",
        )
    return model, unused


def _load(folder: Path, auto: Any, **options: bool) -> tuple[nn.Module, list[str], list[str]]:
    """Return the model, the names of its missing weights, and the names of unused weights."""
    model, info = pretrained(folder, auto, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        # computed weights, such as sinusoidal positions, need not be in a folder
        with captured_logs(), quiet_transformers(), bounded_model(folder):
            # weights that a second model of the class has as well are computed, not drawn
            another = type(model)(model.config).float()
        weights = dict(model.named_parameters())
        frozen = {name: weight for name, weight in another.named_parameters() if not weight.requires_grad}
        missing = [
            name
            for name in missing
            if name not in frozen or name not in weights or not torch.equal(weights[name], frozen[name])
        ]
    return model, missing, sorted(info["unexpected_keys"])


def pretrained(folder: Path, kind: Any, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of a folder in float32, for inference, and the library's information on its weights.

    Args:
        folder: the folder, with weights as safetensors.
        kind: a class of transformers, or one that chooses the class.
        options: more arguments of `from_pretrained`.

    Raises:
        BaseModelError: transformers cannot open the folder, or the model is far larger than its weights.
    """
    with captured_logs(), quiet_transformers(), bounded_model(folder), parsing(partial(_not_opened, folder)):
        model, info = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            # pickles can run code when they are loaded
            use_safetensors=True,
            # code of the folder must not run
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    return model.eval(), info


def _not_opened(folder: Path, reason: str) -> BaseModelError:
    return BaseModelError(
        "transformers cannot open the folder",
        where=folder,
        found=reason,
        expected="a complete model of an architecture that the installed transformers supports",
        fix="copy the folder again completely, or upgrade transformers",
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the log and the progress bars of transformers."""
    log: Any = transformers_log
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
