"""Generation settings of a model of transformers, as its `generate` reads them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from adapter_export.errors import BaseModelError
from adapter_export.format.generation import SpeechRecord
from adapter_export.format.model_config import Generation
from adapter_export.runtime.generation.speech_prompt import speech_prompt
from adapter_export.safe_io.regular_files import read_text
from adapter_export.words import quoted

GENERATION_FILE, _TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"

_UNHEEDED = (
    *("num_beams", "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("min_length", "min_new_tokens", "sequence_bias"),
)
"""Settings of `generate` that change the choice or the number of tokens."""

_OF_SPEECH = (
    *("return_timestamps", "no_speech_threshold", "logprob_threshold", "compression_ratio_threshold"),
    *("condition_on_prev_tokens", "forced_eos_token_id"),
)
"""Settings of `generate` for speech that write timestamps, or a text again or not at all, or from an earlier text."""

_PROVED = 2
"""Tokens of each text that capture compares with `generate`."""


def own_generation(model: Any, folder: Path) -> Generation:
    """Return the generation settings of a language model, from `generation_config.json` or `config.json`.

    Raises:
        BaseModelError: a decoder of speech forces tokens that its configuration does not name.
    """
    config, file = model.generation_config, folder / _TOKENIZER_CONFIG
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    last = config.forced_eos_token_id if isinstance(config.forced_eos_token_id, list) else [config.forced_eos_token_id]
    never = [*(config.suppress_tokens or ()), *(ids[0] for ids in config.bad_words_ids or () if len(ids) == 1)]
    return Generation(
        end=tuple(number for number in ends if number is not None),
        padding=config.pad_token_id,
        start=start if model.config.is_encoder_decoder else None,
        first=config.forced_bos_token_id,
        suppressed=tuple(sorted({number for number in never if number >= 0})),
        last=min((number for number in last if number is not None), default=None),  # all have logit 0: the first wins
        suppressed_first=tuple(sorted({number for number in config.begin_suppress_tokens or () if number >= 0})),
        speech=_speech(model),
        begin=config.bos_token_id,
        tokenizer_config=read_text(file) if file.is_file() else None,
    )


def unheeded(model: Any) -> tuple[str, ...]:
    """Return a note on settings of transformers' `generate` that greedy generation here ignores."""
    found = _ignored(model, _UNHEEDED)
    return (f"generation is greedy and ignores {quoted(found)} of `{GENERATION_FILE}`",) if found else ()


def check_generation(model: Any, generation: Generation, shape: Sequence[int], folder: Path) -> None:
    """Compare the tokens that the settings choose for a file of noise with those of transformers' `generate`.

    Args:
        model: writes the text of a file.
        generation: its settings.
        shape: the size of the encoder's input, without the batch.
        folder: its folder, for messages.

    Raises:
        BaseModelError: `generate` writes other tokens, or settings that it reads have no counterpart here.
    """
    where = folder / GENERATION_FILE
    found = _ignored(model, (*_UNHEEDED, *_OF_SPEECH))
    if found:
        raise BaseModelError(
            "has generation settings that are not supported for files",
            where=where,
            found=quoted(found),
            expected="greedy generation without timestamps",
            fix="remove them from the file if the model may be used without them",
        )
    features = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for choice in _choices(generation.speech):
        expected = _generated(model, features, choice)
        tokens = _greedy(model, features, generation, choice)[: len(expected)]
        if tokens != expected:
            raise BaseModelError(
                "generates other tokens than its settings describe",
                where=where,
                found=f"{expected} by `generate` of transformers for {choice or 'no choice'}",
                expected=str(tokens),
                fix="save the generation settings again with the newest transformers",
            )


def _ignored(model: Any, names: Sequence[str]) -> list[str]:
    said = model.generation_config.to_diff_dict()
    words = [ids for ids in said.get("bad_words_ids") or () if len(ids) > 1]
    return [name for name in names if said.get(name)] + ["bad_words_ids"] * bool(words)


def _speech(model: Any) -> SpeechRecord | None:
    """Return the tokens before the text of speech; `None` for a model whose `generate` takes no language."""
    if "language" not in inspect.signature(model.generate).parameters:
        return None
    config = model.generation_config
    several = getattr(config, "is_multilingual", True)
    languages = dict(getattr(config, "lang_to_id", None) or {}) if several else {}
    tasks = dict(getattr(config, "task_to_id", None) or {}) if several else {}
    closing = getattr(config, "no_timestamps_token_id", None)
    record = SpeechRecord(
        prefix=(),
        languages={_code(name): token for name, token in languages.items()},
        tasks=tasks,
        closing=() if closing is None else (closing,),
        language=_known_code(getattr(config, "language", None)),
        task=getattr(config, "task", None),
        timestamps=None if closing is None else closing + 1,  # as in transformers: all tokens behind that one
        # without the tokens before a text, which `generate` of transformers adds to it
        most_tokens=config.max_new_tokens or config.max_length,
        latest_start=getattr(config, "max_initial_timestamp_index", None),
    )
    forced = getattr(config, "forced_decoder_ids", None) or getattr(model.config, "forced_decoder_ids", None) or []
    prefix = [token for _, token in forced]
    if [place for place, _ in forced] != list(range(1, len(forced) + 1)):
        raise BaseModelError(
            "forces tokens in places that do not follow each other",
            found=f"`forced_decoder_ids` {forced}",
            expected="the places 1, 2 and so on",
        )
    if languages and not prefix:
        prefix = [None]
    if not languages:
        prefix = [token for token in prefix if token is not None]
    if record.closing and prefix[-1:] != list(record.closing):
        prefix += record.closing
    return replace(record, prefix=tuple(prefix))


def _code(name: str) -> str:
    """Return the code of a language token, such as `en` of `<|en|>`."""
    return name.removeprefix("<|").removesuffix("|>")


def _known_code(language: str | None) -> str | None:
    """Return the code of a language by its code, its name or its token."""
    if language is None:
        return None
    code = _code(language.lower())
    return str(TO_LANGUAGE_CODE.get(code, code))


def _choices(speech: SpeechRecord | None) -> list[dict[str, str]]:
    """Return options of `generate` to compare: none, a language, and a task with another language."""
    choices: list[dict[str, str]] = [{}]
    if speech is not None and speech.languages:
        first, *_, last = [*sorted(speech.languages), *sorted(speech.languages)]
        choices += [{"language": first}, *({"language": last, "task": task} for task in sorted(speech.tasks)[-1:])]
    return choices


def _generated(model: Any, features: Tensor, choice: Mapping[str, str]) -> list[int]:
    """Return the tokens that the decoder reads and writes in transformers."""
    several = {"force_unique_generate_call": True} if "language" in inspect.signature(model.generate).parameters else {}
    found = model.generate(
        features, max_new_tokens=_PROVED, do_sample=False, return_dict_in_generate=True, **several, **choice
    )
    tokens: list[int] = found.sequences[0].tolist()
    return tokens


def _greedy(model: Any, features: Tensor, generation: Generation, choice: Mapping[str, str]) -> list[int]:
    """Return the tokens that the decoder reads and writes by the settings."""
    prompt = speech_prompt(generation.record(), choice.get("language"), choice.get("task"))
    with torch.no_grad():
        encoded = model.get_encoder()(features)

    def logits(tokens: Sequence[int]) -> Tensor:
        with torch.no_grad():
            values: Tensor = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        return values

    tokens = list(prompt.read)
    if prompt.languages:
        of_languages = logits(tokens)[sorted(prompt.languages)]
        tokens += [sorted(prompt.languages)[int(of_languages.argmax())], *prompt.forced]
    for written in range(_PROVED):
        values = logits(tokens)
        values[list(generation.suppressed + (generation.suppressed_first if not written else ()))] = -torch.inf
        tokens.append(int(values.argmax()))
    return tokens
