"""Generate text from prompts, with a bundle of a language model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address
from adapter_export.commands.bundles._chat import CHAT
from adapter_export.commands.bundles.run import AdapterFile, FileLabels, FileTask, Provider
from adapter_export.commands.command import Command, Screen
from adapter_export.decoding import Decoding
from adapter_export.option import FormOption, Option, OptionsOf
from adapter_export.tables import Described, number_of

if TYPE_CHECKING:
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.generation.text_writer import Generated, Piece


_NEEDS = {"labels": "adapter_file", "task": "adapter_file", "fan_out": "adapters"}
"""Arguments, and the argument that each one needs."""


@dataclass(frozen=True, repr=False)
class Texts(Described):
    """Texts generated from prompts.

    Attributes:
        pieces: parts of the texts, as they are generated.
        count: the number of texts.
        many: render each text as a line of JSON.
        most: the maximum number of tokens of each text.
    """

    pieces: Iterator[Piece]
    count: int
    many: bool
    most: int

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"texts": self.count, "pieces": "written as they are read"}

    @property
    def whole(self) -> Iterator[Generated]:
        """The texts in the order of the prompts; each is yielded once it and its predecessors are complete."""
        waiting: dict[int, Generated] = {}
        last = 0
        for piece in self.pieces:
            if piece.done is not None:
                waiting[piece.row] = piece.done
            while last in waiting:
                yield waiting.pop(last)
                last += 1


def generate(
    bundle: Bundle | Address,
    prompts: Annotated[Sequence[str], Option("Prompt that the model continues. Repeatable.", "TEXT", "--prompt")],
    *,
    adapter: Annotated[
        str | None, Option("Adapter for all prompts; `base` for the base. Required if there are adapters.", "NAME")
    ] = None,
    adapters: Annotated[
        tuple[str, ...] | None,
        Option(
            "One adapter per prompt, `base` or `-` for the base; a single prompt runs through all of them.",
            "A,B,-",
            commas=True,
        ),
    ] = None,
    fan_out: Annotated[bool, Option("Run every prompt through all `--adapters`.")] = False,
    adapter_file: AdapterFile = None,
    labels: FileLabels = None,
    task: FileTask = None,
    many: Annotated[bool, "Stream one JSON document per text, in the order of the prompts."] = False,
    provider: Provider = "cpu",
    form: FormOption = "given",
    threads: Annotated[int | None, Option("Threads per operation. Default: ONNX Runtime's.", least=1)] = None,
    **decoding: Annotated[Any, OptionsOf(Decoding)],
) -> Texts:
    """Generate text with BUNDLE, whose base is a language model that was captured with its cache.

    ::

        for text in ae.generate("bundle", ["Well met,"], adapter="replies", max_new_tokens=40).whole:
            print(text.text)

    Each prompt may have its own adapter; no text depends on its neighbours. The tokenizer's special tokens are added to
    prompts, and no template. A single text is printed while it is written.

    Args:
        bundle: the bundle, or its folder.
        prompts: at least one.

    Returns:
        The texts, generated as they are read.

    Raises:
        UsageError: arguments exclude each other, or no adapter is named although the bundle has adapters.
        RequestError: the bundle does not generate text, or a prompt, an adapter or the number of tokens does not fit.
        InputError: the bundle cannot be used.
    """
    (settings,) = OptionsOf(Decoding).split("generate", decoding)
    chosen = Decoding(**settings)
    from adapter_export.commands.bundles import _run_rows as run_rows

    run_rows.check_together({**locals()}, [("adapter", "adapters")], _NEEDS)
    from adapter_export.bundle.chosen_form import chosen_form
    from adapter_export.bundle.open_bundle import open_bundle
    from adapter_export.graph.tasks.asked import Row

    run_as = chosen_form(bundle, form, provider)
    opened = open_bundle(run_as.bundle)
    session = opened.session(provider=run_as.provider, threads=threads, on_demand=True)
    if adapter_file is not None:
        loaded = run_rows.load_adapter_file(session, Path(adapter_file), labels, task)
        adapter = adapter or loaded
    writer = opened.writer(session)
    writer.check_limit(chosen)
    rows = [Row(prompt, where=f"prompt {at}") for at, prompt in enumerate(prompts)]
    names = [None if name == run_rows.BASE else writer.named(name) for name in adapters or (adapter,)]
    rows = run_rows.with_adapters(rows, names if adapters else names * len(rows), fan_out=fan_out)
    run_rows.check_adapters(rows, session)
    of_rows = [row.adapter for row in rows]
    return Texts(
        writer.stream([row.asked for row in rows], adapters=of_rows, decoding=chosen),
        len(rows),
        many,
        chosen.max_new_tokens,
    )


def _show(texts: Texts, screen: Screen) -> None:
    """Print a single text while it is generated; print several one after another, under their prompts."""
    limited: list[Generated] = []
    if texts.many:
        for text in texts.whole:
            screen.write(f"{json.dumps(text.document(), ensure_ascii=False)}\n")
    elif texts.count == 1:
        for piece in texts.pieces:
            screen.write(piece.text)
            limited += [piece.done] if piece.done is not None and piece.done.finish == "length" else []
        screen.write("\n")
    else:
        for text in texts.whole:
            limited += [text] if text.finish == "length" else []
            screen.line((f"{text.prompt} ", "bold"), (f"[{text.adapter or 'base'}]", "dim"))
            screen.write(f"{text.text}\n\n")
    full = [text for text in limited if len(text.tokens) < texts.most]
    for count, limit in (
        (len(limited) - len(full), "the token limit; raise it with `--max-new-tokens N`"),
        (len(full), "the most tokens that the base takes, with its prompt"),
    ):
        which = "the text" if texts.count == 1 else f"{count:,} of {number_of(texts.count, 'text')}"
        if count:
            screen.report(f"{which} reached {limit}")


def _document(texts: Texts, _: Screen) -> Mapping[str, object]:
    return {"rows": [text.document() for text in texts.whole]}


COMMAND: Command[Texts] = Command(
    generate,
    _show,
    document=_document,
    examples=(
        "adapter-export generate llama --adapter replies --prompt 'Well met,' --max-new-tokens 40",
        "adapter-export generate llama --adapters replies,questions --prompt 'Well met,' --prompt 'How far'",
        "adapter-export generate llama --adapter replies --chat",
    ),
    instead={"chat": CHAT},
)
