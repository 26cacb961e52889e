"""Diagnose an adapter: effect, strength, tensors that other tools ignore, and causes of failures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.adapters import load_adapter
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.commands.adapters._made_adapter import BASE, BY_NUMBER, WithoutHead
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import AdapterExportError, FileError, InputError, MissingExtraError, UsageError
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.plugins.formats.commands.import_.adapterhub import import_adapterhub
from adapter_export.plugins.formats.commands.import_.peft import import_peft
from adapter_export.plugins.formats.importing import base_of_import, import_request
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import worded

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.formats.doctor.diagnosis import Diagnosis


class _Notes(Reporter):
    """Collects notes, and passes steps on."""

    def __init__(self, reporter: Reporter) -> None:
        self.notes: list[str] = []
        self._reporter = reporter

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        """Pass a step on."""
        self._reporter.step(label, done, total)

    def warn(self, text: str) -> None:
        """Collect a note."""
        self.notes.append(text)


def doctor(
    folder: Address,
    base: Annotated[Base | Address | None, BASE] = None,
    *,
    member: Annotated[str | None, Option("Adapter to examine in a folder of several.", "NAME", "--name")] = None,
    by_number: Annotated[bool, BY_NUMBER] = False,
    dense: Annotated[bool, "Allow full-rank updates."] = False,
    without_head: WithoutHead = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
) -> Diagnosis:
    """Diagnose an adapter of PEFT, AdapterHub or this package for a base.

    Shows the sites that the adapter in FOLDER changes, its strength, and the tensors that PEFT, vLLM, llama.cpp and
    AdapterHub would ignore. A broken folder gets its cause by name: the importer decides whether it fits, and a cause
    with a repair is proved by importing a repaired copy. PEFT's own loader is asked if `peft` is installed and the base
    is a Hugging Face folder.

    Args:
        folder: the adapter's folder, or a file in it.
        base: the model it was trained on. Without it, an error names the one in the configuration.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        reporter: receives each step.

    Returns:
        The diagnosis. A broken adapter raises no error; call `raise_for_failure()` for that.

    Raises:
        FileError: there is no such folder.
        BaseModelError: the base cannot be used.
    """
    from adapter_export.plugins.formats.doctor.adapter_files import library_of
    from adapter_export.plugins.formats.doctor.examine import Subject, examine, examine_own

    located = locate(folder, "adapter", reporter)
    if not located.path.exists():
        raise FileError("does not exist", where=located.path, expected="the folder of an adapter", fix="check the path")
    path = located.path.parent if located.path.is_file() else located.path
    opened = base_for(base_of_import(base, located), OpenOptions(site_map, trust_pickle), reporter, recorded=True)
    library = library_of(path)
    reporter.step("examining the adapter")
    if library == "adapter-export":
        return examine_own(load_adapter(path), opened, reporter)
    notes = _Notes(reporter)
    outcome: Adapter | AdapterExportError
    try:
        if library == "AdapterHub":
            outcome = import_adapterhub(
                path, opened, member=member, by_number=by_number, without_head=without_head, reporter=notes
            )
        else:
            outcome = import_peft(
                path, opened, member=member, by_number=by_number, dense=dense, without_head=without_head, reporter=notes
            )
    except MissingExtraError:  # nothing is wrong with the adapter
        raise
    except (InputError, UsageError) as error:
        outcome = error
    request = import_request(path, None, member, by_number)
    return examine(Subject(path, library, request, without_head, outcome, tuple(notes.notes)), opened, reporter)


_WIDTH, _INDENT = 80, 11
_STYLES: Mapping[str, str] = {"broken": "bold red", "caution": "yellow"}


def _show(diagnosis: Diagnosis, screen: Screen) -> None:
    kind = f" {diagnosis.kind}" if diagnosis.kind else ""
    screen.line((f"`{diagnosis.adapter}`: {diagnosis.library}{kind}, {diagnosis.tensors} tensors", "bold"))
    if diagnosis.groups:
        screen.line("")
        screen.show(diagnosis.site_table())
        formulas = dict.fromkeys(group.formula for group in diagnosis.groups if group.formula)
        screen.line(f"  scale = {', '.join(formulas)};  change = ‖ΔW‖ / ‖W‖" if formulas else "  change = ‖ΔW‖ / ‖W‖")
    if diagnosis.head is not None:
        screen.line(f"  and {diagnosis.head}")
    if diagnosis.tools:
        screen.line("")
        screen.show(diagnosis.tool_table())
    for cause in diagnosis.causes:
        screen.line("")
        screen.line((f"{cause.name}", _STYLES[cause.severity]), f" ({cause.severity})")
        facts = (("found", cause.found), ("expected", cause.expected), ("why", cause.reason), ("do", cause.fix))
        for label, fact in facts:
            _show_fact(label, worded(fact, "shell"), screen)
    screen.line("")
    screen.line((diagnosis.verdict, "green" if diagnosis.passed else "bold red"))
    for note in diagnosis.notes:
        screen.report(note)


def _show_fact(label: str, text: str, screen: Screen) -> None:
    wrapped = textwrap.wrap(text, _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(wrapped):
        screen.line(f"  {label}".ljust(_INDENT) if number == 0 else " " * _INDENT, line)


COMMAND = Command(
    doctor,
    _show,
    passed=lambda diagnosis: diagnosis.passed,
    exit_codes="0 it fits and changes the base, 1 it is broken or does nothing, 2 wrong call, 3 no such file, or an "
    "unusable base",
    examples=(
        "adapter-export doctor lora_folder --base HF_FOLDER",
        "adapter-export doctor owner/lora --base owner/model",
        "adapter-export doctor lora_folder --base model.pt --json | jq '.causes[].name'",
    ),
)
