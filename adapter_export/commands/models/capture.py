"""Make a model archive from a Hugging Face folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, Located, PathLike, is_remote, locate
from adapter_export.bases.base import Base
from adapter_export.bases.opening import open_base
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import NoSitesError, UsageError
from adapter_export.extras import require
from adapter_export.format.lengths import parse_lengths
from adapter_export.option import Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_text
from adapter_export.tables import size
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from torch.nn import Module

    from adapter_export.format.lengths import Lengths
    from adapter_export.format.manifest import InputRecord
    from adapter_export.torch_backend.base.capture_module import AxisNames, Inputs


def capture(
    model: Address | Module,
    output: Annotated[PathLike, Option("The archive to write.", "PATH", "-o")],
    *,
    example_inputs: Inputs | None = None,
    axes: AxisNames | None = None,
    bare: Annotated[
        bool,
        "Capture a language model without its language head and its cache, as a base for classifiers and embedders.",
    ] = False,
    trust_pickle: Annotated[
        bool,
        "Load a pickled module. This runs any code in the file with your permissions: only for files you trust.",
    ] = False,
    inputs: Annotated[
        Sequence[str],
        Option(
            "Input of the model, such as `input_values=float32[batch,samples]`; repeatable. Named axes "
            "are dynamic. Detected from the folder's tokenizer, its processor, or usual names.",
            "NAME=TYPE[AXIS,…]",
            "--input",
        ),
    ] = (),
    tokenizer: Annotated[Address | None, Option("`tokenizer.json` of a pickled module, or its folder.", "PATH")] = None,
    max_tokens: Annotated[int | None, Option("Maximum input length of a pickled module, in tokens.", least=1)] = None,
    lengths: Annotated[
        Sequence[str],
        Option(
            "Lengths of a dynamic axis, such as `sequence=128`, which fixes it, `sequence=64..512`, "
            "`sequence=64..` or `sequence=multiple-of-8`. Repeatable.",
            "AXIS=LENGTHS",
            "--axis",
        ),
    ] = (),
    reranker_tokens: Annotated[
        Sequence[str],
        Option(
            "Tokens by whose logits a decoder says that a pair goes together or not, such as `yes,no`; "
            "defaults to those of a cross-encoder's files.",
            "YES,NO",
            commas=True,
        ),
    ] = (),
    prompt: Annotated[
        PathLike | None,
        Option("File with a reranker's prompt, which contains `{text}` and `{pair}`; it is used verbatim.", "FILE"),
    ] = None,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Base:
    """Make a model archive from MODEL, with its graph, weights and module paths, but none of its code.

    MODEL is a Hugging Face or sentence-transformers folder, with `config.json` and `model.safetensors`, or such a
    repository of the Hub, `owner/name[@revision]`, from which safetensors, JSON and tokenizers are fetched. Its class
    is read from `architectures`, and its inputs from its tokenizer or processor, or from `--input`. With
    `--trust-pickle`, MODEL is a file written by `torch.save(module)`. In Python, it may be any module:
    `adapter_export.capture(module, "model.pt", example_inputs=…)`.

    A language model, such as `…ForCausalLM` or `…ForConditionalGeneration`, is captured as it generates: with its
    language head, and with its cache as inputs `past_key_values.N.key` and outputs `present.N.key`. To train heads on
    it, capture it with `--bare`.

    Of any other model, the archive contains the bare model and the base head: the computation on the final hidden
    state, if a head can express it. A note names omitted parts. The archive also has the tokenizer.

    Args:
        model: a Hugging Face or sentence-transformers folder, or a Hub id; a torch module; or, with `trust_pickle`, a
            file written by `torch.save(module)`.
        output: the archive to write, such as `model.pt`.
        example_inputs: for a module: by name, or in the order of `forward`'s arguments; one row is enough.
        inputs: for any model, instead of examples: all of its inputs, `["pixel_values=float32[batch,3,224,224]"]`.
        axes: for a module: the dynamic axes of each input, `{"input_ids": {0: "batch", 1: "sequence"}}`. Default:
            axis 0 of every input is `batch`, and axis 1 of every integer or bool input [batch, tokens] is dynamic.
        tokenizer: for a module, pickled or not: a `tokenizer.json`, or a folder with one.
        max_tokens: for a module, pickled or not: its maximum input length, in tokens.
        reranker_tokens: for a folder: the tokens for a relevant and an irrelevant pair.
        prompt: for a reranker: a file with the prompt's template.
        lengths: lengths of dynamic axes. Default: those at which the archive and the model agree.
        reporter: receives each step, and notes about omitted parts and about choices that the folder does not
            state.

    Raises:
        UsageError: arguments exclude each other.
        BaseModelError: torch cannot export the model, or it cannot be a base.
        RemoteError: the Hub cannot serve it.
        OutputExistsError, WriteError: the archive cannot be written.
    """
    path = Path(output)
    Output(path, force).ensure_writable(sources=[model, tokenizer])
    if isinstance(model, str | os.PathLike):
        if trust_pickle and is_remote(model):
            raise UsageError(argument("trust_pickle") + " is for a file on this machine", found=f"`{model}`")
        _check_capture(Path(model), trust_pickle, described=bool(tokenizer or max_tokens))
    elif (example_inputs is None) == (not inputs):
        fix = "pass " + argument("example_inputs") + ", or describe them in " + argument("inputs")
        raise UsageError("a module needs example inputs", fix=fix)
    described = _parse_inputs(inputs)
    bounds = _parse_lengths(lengths)
    is_folder, source = isinstance(model, str | os.PathLike) and not trust_pickle, None
    for_folders = {"bare": bare, "reranker_tokens": reranker_tokens, "prompt": prompt}
    if not is_folder and any(for_folders.values()):
        names = joined(argument(name) for name, value in for_folders.items() if value)
        raise UsageError(names + " applies to Hugging Face folders only", fix="remove it")
    template = "" if prompt is None else read_text(Path(prompt))
    require("torch", "hf" if is_folder else "torch", "capturing a model")
    model_opened = model
    if isinstance(model, str | os.PathLike):
        located = Located(str(model), Path(model)) if trust_pickle else locate(model, "model", reporter)
        model, source = located.path, located.source
    from adapter_export.bases.base_record import record_key
    from adapter_export.text import read_tokenizer
    from adapter_export.torch_backend.base.example_inputs import described_inputs
    from adapter_export.torch_backend.base.torch_base import capture_pickled, save_base

    text = None if tokenizer is None else read_tokenizer(locate(tokenizer, "tokenizer", reporter).path)
    reporter.step(f"opening and capturing {model_opened}" if isinstance(model, Path) else "capturing the module")
    if not isinstance(model, Path):
        if example_inputs is None:
            example_inputs, axes = described_inputs(described)
        save_base(
            model, example_inputs, path, axes=axes, lengths=bounds, tokenizer=text, max_tokens=max_tokens, force=force
        )
    elif trust_pickle:
        capture_pickled(model, path, described, lengths=bounds, tokenizer=text, max_tokens=max_tokens, force=force)
    else:
        require("transformers", "hf", "opening a Hugging Face folder")
        from adapter_export.torch_backend.base.huggingface_folder import capture_folder

        capture_folder(
            model,
            path,
            inputs=described,
            bare=bare,
            lengths=bounds,
            source=source,
            reranker_tokens=reranker_tokens,
            prompt=template,
            force=force,
        )
    reporter.step("loading the written archive")
    key = record_key(path, None)
    base = open_base(path)
    for note in base.notes:
        reporter.warn(note)
    if key is not None:
        with suppress(NoSitesError):  # a base without sites is an error only in calls that need sites
            base.write_record(key)
    return base


def _check_capture(model: Path, trust_pickle: bool, *, described: bool) -> None:
    """Refuse arguments that do not apply to this form of model."""
    if trust_pickle and model.is_dir():
        raise UsageError(argument("trust_pickle") + " is for a pickled module", found="a folder", fix="remove it")
    if described and not trust_pickle:
        raise UsageError(
            argument("tokenizer") + " and " + argument("max_tokens") + " describe a pickled module",
            found="no " + argument("trust_pickle"),
            fix="remove them; a Hugging Face folder contains both",
        )
    if model.is_file() and not trust_pickle:
        from adapter_export.torch_backend.base.pickles import check_pickled, untrusted

        check_pickled(model)
        raise untrusted(model)


_TYPES = ("float32", "int64", "int32", "bool")
_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<axes>[^\[\]]*)\]")
_AXIS = re.compile(r"[A-Za-z_]\w*|[1-9][0-9]{0,8}")


def _parse_inputs(texts: Sequence[str]) -> tuple[InputRecord, ...]:
    """Read descriptions of inputs such as `input_ids=int64[batch,sequence]`."""
    from adapter_export.format.manifest import InputRecord

    where, records = argument("inputs", option="input"), []
    for text in texts:
        match = _INPUT.fullmatch(text)
        axes = [] if match is None else [axis.strip() for axis in match["axes"].split(",") if match["axes"].strip()]
        if match is None or match["dtype"] not in _TYPES or not all(map(_AXIS.fullmatch, axes)):
            raise UsageError(
                "invalid input description",
                where=where,
                found=f"`{text}`",
                expected=f"`NAME=TYPE[AXIS,…]` with a type of {', '.join(_TYPES)}",
                fix="write it as `input_ids=int64[batch,sequence]`; an axis is a number, or has a name and is dynamic",
            )
        sizes = tuple(int(axis) if axis.isdecimal() else axis for axis in axes)
        records.append(InputRecord(match["name"], match["dtype"], sizes, "values"))
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("an input is described twice", where=where, found=f"`{twice}`", fix="remove one of them")
    return tuple(records)


def _parse_lengths(texts: Sequence[str]) -> dict[str, Lengths]:
    """Read lengths such as `sequence=64..512`, grouped by axis."""
    by_axis: dict[str, list[str]] = {}
    for text in texts:
        axis, _, values = text.partition("=")
        by_axis.setdefault(axis.strip(), []).append(values)
    bounds = {}
    for axis, parts in by_axis.items():
        values = ",".join(parts)
        try:
            lengths = parse_lengths(values)
        except ValueError:
            lengths = None
        if lengths is None or not _AXIS.fullmatch(axis):
            raise UsageError(
                "invalid or empty lengths",
                where=argument("lengths", option="axis"),
                found=f"`{axis}={values}`",
                expected="`AXIS=LENGTHS`",
                fix="write them as `sequence=128`, `sequence=64..512`, `sequence=64..` or `sequence=multiple-of-8`",
            )
        bounds[axis] = lengths
    return bounds


def _show(base: Base, screen: Screen) -> None:
    output = screen.given["output"]
    head = base.base_head.head if base.base_head else None
    task = None if head is None else head.task.type.replace("_", " ") if head.task else "logits"
    means = "" if task is None else f" and its base head ({task})"
    tokenizer = f"{'with' if base.tokenizer else 'without'} a tokenizer{means}"
    screen.report(f"wrote {output}: {size(output.stat().st_size)}, {tokenizer}.")
    screen.report(f"Next: {_show_next_step(base, output)}")
    screen.report(f"  or: {next_line('sites', output)}")


def _show_next_step(base: Base, output: Path) -> str:
    """Return the command that makes an adapter for the base: encoder–decoders are trained elsewhere and imported."""
    roles = [record.role for record in base.inputs]
    if "cache" not in roles:
        return next_line("train", output, "--data", "train.tsv", "-o", "adapter") + "  # with a table of your own"
    if roles.count("ids") == 1:
        line = next_line("train", output, "--task", "causal_lm", "--data", "texts.jsonl", "-o", "adapter")
        return line + "  # with texts of your own"
    return next_line("import", "peft", "lora", "--base", output, "-o", "adapter") + "  # with a PEFT folder `lora`"


def _document(base: Base, screen: Screen) -> Mapping[str, object]:
    output = screen.given["output"]
    return {
        "model": str(output),
        "fingerprint": base.fingerprint,
        "bytes": output.stat().st_size,
        "inputs": [record.name for record in base.inputs],
        "outputs": [record.name for record in base.outputs],
        "lengths": {axis: asdict(lengths) for axis, lengths in base.lengths.items()},
        "max_tokens": base.max_tokens,
        "tokenizer": base.tokenizer is not None,
        "base_head": base.base_head_facts(),
        "notes": list(screen.notes),
    }


COMMAND = Command(
    capture,
    _show,
    document=_document,
    examples=(
        "adapter-export capture path/to/all-MiniLM-L6-v2 -o model.pt",
        "adapter-export capture sentence-transformers/all-MiniLM-L6-v2 -o model.pt",
        "adapter-export capture path/to/llama -o llama.pt",
        "adapter-export capture path/to/llama --bare -o encoder.pt",
        "adapter-export capture path/to/patchtst --input past_values=float32[batch,512,7] -o model.pt",
        "adapter-export capture path/to/mamba --axis sequence=128 -o mamba.pt",
        "adapter-export capture --trust-pickle mine.pt --input x=float32[batch,sequence,64] -o model.pt",
    ),
)
