"""Rotary position embeddings whose frequencies change with the length of a text, which no program can contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import walk_tb

from torch import nn
from torch.export import ExportedProgram

from adapter_export.errors import RotaryEmbeddingError
from adapter_export.torch_backend.base.program_signature import changed_values
from adapter_export.words import quoted


def rotary_of_failure(error: BaseException, module: nn.Module) -> RotaryEmbeddingError | None:
    """Return the error of a rotary embedding whose code a failed export was running, or `None`."""
    cause: BaseException | None = error
    while cause is not None:
        running = (frame.f_locals.get("self") for frame, _ in walk_tb(cause.__traceback__))
        rotary = next((inner for inner in running if isinstance(inner, nn.Module) and _types(inner)), None)
        if rotary is not None:
            return _error(rotary, module)
        cause = cause.__cause__ or cause.__context__
    return None


def rotary_of_program(program: ExportedProgram, module: nn.Module) -> RotaryEmbeddingError | None:
    """Return the error of a rotary embedding whose frequencies a program overwrites, or `None`."""
    owners = {name: inner for name, inner in module.named_modules() if _types(inner)}
    for value in changed_values(program):
        rotary = owners.get(value.rpartition(".")[0])
        if rotary is not None:
            return _error(rotary, module)
    return None


def _types(module: nn.Module) -> list[str]:
    """Return the types of a rotary embedding as transformers names them, one for each kind of layer."""
    named = getattr(module, "rope_type", None)
    if isinstance(named, Mapping):
        return sorted(set(map(str, named.values())))
    return [named] if isinstance(named, str) else []


def _error(rotary: nn.Module, module: nn.Module) -> RotaryEmbeddingError:
    return RotaryEmbeddingError(
        "the frequencies of the rotary position embedding (RoPE) change with the length of the text",
        where=next(_names(rotary, module), None),
        found=f"`rope_type` {quoted(_types(rotary))}",
        expected="constant frequencies, such as those of `default`, `linear` or `yarn`",
        fix="use a model with such a `rope_type`; or set one in a copy of `config.json` and evaluate that model, "
        "since its outputs are different",
    )


def _names(rotary: nn.Module, module: nn.Module) -> Iterator[str]:
    return (f"`{name}`" for name, inner in module.named_modules() if inner is rotary)
