"""Hugging Face folders as bases. Importing this module needs transformers; nothing is fetched from the Hub."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_log

from adapter_export.errors import BaseModelError, FileError, argument, within
from adapter_export.torch_backend.base.base import TorchBase, load_base, save_base
from adapter_export.torch_backend.base.capture import AxisNames, most_tokens, obvious_inputs
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, first_line, quiet

BATCH, TOKENS, PAST = "batch", "sequence", "past_sequence"
_TOTAL = f"{PAST} + {TOKENS}"
_PAST_AXIS = 2
"""Keys and values are [batch, heads, tokens, width]."""

_EXAMPLE_BATCH, _EXAMPLE_TOKENS, _EXAMPLE_PAST = 2, 3, 5

Layers = Sequence[Mapping[str, Tensor]]
"""A cache: for each layer its `key` and `value`, [batch, heads, tokens, width]."""


class CachedDecoder(nn.Module):
    """A causal language model behind plain tensors: logits of new tokens behind a past that is handed in.

    The position of a token is the number of real tokens before it, as `generate` of transformers counts, so rows of a
    batch may be padded on the left.

    Args:
        model: a causal language model that keeps keys and values of each layer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._counts_itself = "position_ids" not in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Layers) -> dict[str, Tensor]:
        """Compute `logits` [batch, sequence, words], and `present.N.key` and `present.N.value` of every layer N.

        Args:
            input_ids: the new tokens, [batch, sequence].
            attention_mask: 1 for the real tokens of past and new ones, [batch, past_sequence + sequence].
            past_key_values: what was `present` the last time; of length 0 at first.
        """
        # torch is told which lengths are the same, so that the captured program has one name for each
        length = past_key_values[0]["key"].shape[_PAST_AXIS]
        check: Any = torch._check
        check(attention_mask.shape[1] == length + input_ids.shape[1])
        for kept in (kept for layer in past_key_values for kept in layer.values()):
            check(kept.shape[_PAST_AXIS] == length)
        cache = DynamicCache()
        for number, layer in enumerate(past_key_values):
            cache.update(layer["key"], layer["value"], number)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        options = {} if self._counts_itself else {"position_ids": positions}
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **options
        )
        present = {
            f"present.{number}.{name}": kept
            for number, layer in enumerate(_layers(result.past_key_values))
            for name, kept in zip(("key", "value"), layer, strict=True)
        }
        return {"logits": result.logits, **present}

    def example_inputs(self) -> dict[str, Any]:
        """Inputs to capture it with.

        Raises:
            BaseModelError: the model keeps something else than keys and values of each layer.
        """
        ids = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_TOKENS, dtype=torch.int64)
        mask = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_PAST + _EXAMPLE_TOKENS, dtype=torch.int64)
        past = torch.ones(_EXAMPLE_BATCH, _EXAMPLE_PAST, dtype=torch.int64)
        with torch.no_grad():
            kept = self.model(input_ids=past, use_cache=True).past_key_values
        layers = [{"key": key, "value": value} for key, value in _layers(kept)]
        return {"input_ids": ids, "attention_mask": mask, "past_key_values": layers}


def cache_axes(layers: int) -> AxisNames:
    """The names of the dynamic axes of a cached decoder."""
    past = {0: BATCH, _PAST_AXIS: PAST}
    caches = {f"past_key_values.{number}.{name}": past for number in range(layers) for name in ("key", "value")}
    return {"input_ids": {0: BATCH, 1: TOKENS}, "attention_mask": {0: BATCH, 1: _TOTAL}, **caches}


def _layers(cache: object) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    layers = getattr(cache, "layers", ())
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    kept = [(key, value) for key, value in pairs if isinstance(key, Tensor) and isinstance(value, Tensor)]
    if not kept or len(kept) != len(pairs) or any(tensor.dim() != 4 for pair in kept for tensor in pair):
        raise BaseModelError(
            "keeps something else of a text than keys and values of each layer",
            found=f"`{type(cache).__name__}`",
            expected="a cache of [batch, heads, tokens, width] tensors in every layer",
            fix=f"capture it without {argument('with_cache', True)}",
        )
    return kept


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_FOLDER_ERRORS: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, SafetensorError)


def capture_folder(folder: Path, path: Path, *, with_cache: bool = False, force: bool = False) -> None:
    """Save the model of a Hugging Face folder as a base, with its tokenizer; needs no network.

    The model is the bare one of its architecture, in float32. Inputs are those of `input_ids`, `attention_mask` and
    `token_type_ids` that it takes, or `pixel_values`, or `input_features`; with a decoder behind an encoder also
    `decoder_input_ids` and `decoder_attention_mask`. A part whose weights the folder lacks, such as the pooler of a
    model that was trained without one, is left out.

    With a cache, the model is a decoder with its language head, as `torch.decoder.CachedDecoder` describes it: inputs
    `input_ids`, `attention_mask` and `past_key_values.N.key` and `.value` of each layer N, outputs `logits` and
    `present.N.key` and `.value`.

    Args:
        folder: has `config.json` and `model.safetensors`, and perhaps `tokenizer.json`.
        path: where to write, such as `model.pt`.
        with_cache: capture the model that generates text.
        force: replace what is there.

    Raises:
        FileError: the folder or a file in it is missing.
        BaseModelError: the model cannot be opened or exported, or weights are missing that it needs.
        OutputExistsError, WriteError: as `save_base`.
    """
    _check_files(folder)
    model = _open(folder, AutoModelForCausalLM if with_cache else AutoModel)
    tokenizer = folder / "tokenizer.json"
    module, found = model, None if with_cache else obvious_inputs(model)
    if with_cache:
        module = CachedDecoder(model)
        with within(folder), quiet(), _quiet_transformers():
            past = module.example_inputs()
        found = past, cache_axes(len(past["past_key_values"]))
    if found is None:
        raise BaseModelError(
            "takes inputs that are neither tokens, nor images, nor sound of a known length",
            where=folder,
            found=", ".join(inspect.signature(model.forward).parameters),
            expected="`input_ids`, `pixel_values` or `input_features`",
            fix="load the model in Python and save it with `save_base`, which takes any inputs",
        )
    save_base(
        module,
        found[0],
        path,
        axes=found[1],
        tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
        max_tokens=most_tokens(model),
        force=force,
    )


def open_folder(folder: Path) -> TorchBase:
    """Open the model of a Hugging Face folder as a base, as it would be after `capture_folder`.

    Raises:
        FileError, BaseModelError: as `capture_folder`.
    """
    with TemporaryDirectory(prefix="adapter-export-") as temporary:
        path = Path(temporary) / "base.pt"
        capture_folder(folder, path)
        return load_base(path)


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileError(
            "is no Hugging Face folder",
            where=folder,
            found="no `config.json`" if folder.is_dir() else "no folder",
            expected="a folder with `config.json` and `model.safetensors`",
            fix="check the path",
        )
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    raise BaseModelError(
        "has no weights that are safe to read",
        where=folder,
        found=f"`{pickles[0]}`, a pickle, which could run code" if pickles else "no weights",
        expected="`model.safetensors`",
        fix="save the model again with `model.save_pretrained(folder)`, which writes safetensors",
    )


def _open(folder: Path, auto: Any = AutoModel) -> nn.Module:
    """The model with every weight from the folder: what transformers would start at random is not in it."""
    model, missing = _load(folder, auto)
    if missing and auto is AutoModel:
        # the part that most models lack weights for; not every architecture has it
        with suppress(BaseModelError):
            model, missing = _load(folder, add_pooling_layer=False)
    if missing:
        raise BaseModelError(
            "lacks weights that the model needs, which would be random numbers",
            where=folder,
            found=", ".join(f"`{name}`" for name in missing[:3])
            + (f" and {len(missing) - 3} more" * (len(missing) > 3)),
            expected="all weights of the model in `model.safetensors`",
            fix="save the part of the model that has weights with `save_base`",
        )
    return model


def _load(folder: Path, auto: Any = AutoModel, **options: bool) -> tuple[nn.Module, list[str]]:
    """The model, and the names of weights that the folder lacks and nobody can know."""
    model, missing = _read(folder, auto, **options)
    if not missing:
        return model, []
    with quiet(), _quiet_transformers():
        another = auto.from_config(model.config, dtype=torch.float32)
    # weights that are computed and never trained, such as positions as sines, need not be in a folder
    weights = dict(model.named_parameters())
    frozen = {name: weight for name, weight in another.named_parameters() if not weight.requires_grad}
    computed = {name for name, weight in frozen.items() if name in weights and torch.equal(weights[name], weight)}
    return model, [name for name in missing if name not in computed]


def _read(folder: Path, auto: Any, **options: bool) -> tuple[nn.Module, list[str]]:
    with quiet(), _quiet_transformers():
        try:
            model, info = auto.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
        except _FOLDER_ERRORS as error:
            raise BaseModelError(
                "transformers cannot open the folder",
                where=folder,
                found=first_line(error),
                expected="a model of an architecture that the installed transformers knows, whole",
                fix="copy the folder again as a whole, or upgrade transformers",
            ) from error
    return model.eval(), sorted(info["missing_keys"])


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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
