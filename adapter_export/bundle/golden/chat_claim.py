"""Verification of chat templates: golden chats are rendered again, and the templates compared with the model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.report import BASE
from adapter_export.errors import MissingExtraError
from adapter_export.format.check_report import Finding
from adapter_export.format.generation import GoldenChats
from adapter_export.runtime.generation.golden_chats import chat_faults
from adapter_export.tables import number_of, verb_for
from adapter_export.text import Tokenizer

CHECK = "golden chats"
"""Name of the check in reports."""


def replay_chats(bundle: OpenedBundle, chats: GoldenChats) -> Finding:
    """Render golden chats the way a client does, and compare prompts, tokens and the facts of the manifest."""
    renderer, record = bundle.bundle.chat(), bundle.manifest.chat
    assert record is not None
    tokenizer: Tokenizer | None = None
    missing = ", tokens not compared: `tokenizers` is not installed"
    with suppress(MissingExtraError):
        tokenizer, missing = bundle.tokenizer, ""
    try:
        if chats.digest != record.digest:
            detail = f"made with templates {chats.digest[:12]}…, the bundle's are {record.digest[:12]}…"
            return Finding.tested(CHECK, BASE, False, detail)
        plain = renderer.without_record()
        faults = dict(chat_faults(chats, plain, tokenizer))
        facts = plain.written_roles(), plain.writes_tools()
        plain.close()
    except MissingExtraError:
        return Finding.unverified(CHECK, BASE, "`jinja2` is not installed")
    if faults:
        name, fault = next(iter(faults.items()))
        differ = f"{len(faults)} of {number_of(len(chats.chats), 'prompt')} {verb_for(len(faults), 'differ')}"
        detail = f"{differ}; `{name}`: {fault}"
        return Finding.tested(CHECK, BASE, False, detail)
    if facts != (record.roles, record.tools):
        detail = (
            f"the templates write {facts[0]} and tools: {facts[1]}; the manifest has {record.roles}, {record.tools}"
        )
        return Finding.tested(CHECK, BASE, False, detail)
    return Finding.tested(CHECK, BASE, True, f"{number_of(len(chats.chats), 'prompt')} equal{missing}")


def compare_chats(bundle: OpenedBundle, model: str | None) -> Iterator[Finding]:
    """Compare the digest of the templates with that of the model's own, if it has some."""
    record = bundle.manifest.chat
    if record is not None and model is not None:
        same = record.digest == model
        detail = "the templates match the model's" if same else "the templates are not the model's own"
        yield Finding.tested(CHECK, "model", same, detail)
