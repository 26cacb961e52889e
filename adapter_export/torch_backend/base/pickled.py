"""A pickled module becomes a base. Reading it runs whatever code its maker put into it: for trusted files alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from adapter_export.errors import BaseModelError, UsageError, within
from adapter_export.format.manifest import InputRecord
from adapter_export.torch_backend.base.archive import readable
from adapter_export.torch_backend.base.base import save_base
from adapter_export.torch_backend.base.capture import AxisNames, Inputs, described_inputs, most_tokens, obvious_inputs
from adapter_export.torch_backend.base.file_kinds import check_pickled
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, first_line, quiet


def capture_pickled(
    path: Path,
    out: Path,
    inputs: Sequence[InputRecord] = (),
    *,
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    force: bool = False,
) -> None:
    """Read a file of `torch.save(module)`, running its code, and save the module as a base, which holds no code.

    Weights in float16 and bfloat16 become float32, as those of Hugging Face folders do.

    Args:
        path: the file. It can run any code: only for files whose maker you trust.
        out: where to write, such as `model.pt`.
        inputs: names, types and shapes of what `forward` takes; if none are given, tokens or images by their usual
            names, where the module takes nothing else.
        tokenizer: the text of a `tokenizer.json`.
        max_tokens: the longest input in tokens; what the module's `config` says if not given.
        force: replace what is there.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is no pickled module, its class cannot be imported, or it is no base.
        UsageError: what the module takes is not obvious and `inputs` are not given, or they are not those of `forward`.
        OutputExistsError, WriteError: as `save_base`.
    """
    readable(path)
    check_pickled(path)
    module = _unpickled(path)
    with within(path):
        examples, axes = described_inputs(inputs) if inputs else _obvious(module)
        limit = max_tokens if max_tokens is not None else most_tokens(module)
        save_base(module, examples, out, axes=axes, tokenizer=tokenizer, max_tokens=limit, force=force)


def _unpickled(path: Path) -> nn.Module:
    with quiet():
        try:
            module = torch.load(path, map_location="cpu", weights_only=False)
        except (ImportError, AttributeError) as error:
            raise BaseModelError(
                "needs the code of its classes, and Python does not find it",
                where=path,
                found=first_line(error),
                expected="the modules that it was saved from, where Python looks for modules",
                fix="name their folder in `PYTHONPATH`; a class of a script, `__main__`, must move into a module",
            ) from error
        except LIBRARY_ERRORS as error:
            raise BaseModelError(
                "torch cannot read the pickle", where=path, found=first_line(error), fix="save the model again"
            ) from error
    if not isinstance(module, nn.Module):
        raise BaseModelError(
            "holds no module",
            where=path,
            found=f"`{type(module).__name__}`",
            expected="a `torch.nn.Module`, saved as a whole",
            fix="take the module out of it in Python and save it with `save_base`",
        )
    return module.float()  # adapters are trained on float32; what was stored in fewer bits is exact in it


def _obvious(module: nn.Module) -> tuple[Inputs, AxisNames | None]:
    found = obvious_inputs(module)
    if found is None:
        raise UsageError(
            "what the model takes is not obvious",
            where=f"`{type(module).__name__}.forward{inspect.signature(module.forward)}`"[:300],
            expected="`--input NAME=TYPE[AXIS,…]` for each input",
            fix="say what it takes, such as `--input x=float32[batch,sequence,64]`; axes with names are dynamic",
        )
    return found
