"""README of a bundle: its adapters and its usage. A push replaces it with a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.manifest_json import CARD_FILE, MANIFEST_FILE
from adapter_export.markdown import escaped, labels_cell, table_lines
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import open_regular, sha256_of

_FIRST_LINE = "<!-- Written by adapter-export with the bundle. -->"
_EXAMPLE = "a text"
_MOST_SHOWN = 50


def write_readme(folder: Path, manifest: Manifest) -> None:
    """Write or replace the README of a bundle; its manifest must exist."""
    with Output(folder / CARD_FILE, force=True).file() as temporary:
        temporary.write_text("\n".join(_lines(manifest, sha256_of(folder / MANIFEST_FILE))) + "\n", encoding="utf-8")


def is_card(path: Path) -> bool:
    """Return whether a README is a model card, not written by `write_readme`."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(len(_FIRST_LINE)) != _FIRST_LINE.encode()


def _lines(manifest: Manifest, digest: str) -> Iterator[str]:
    count = len(manifest.adapters)
    yield from (_FIRST_LINE, "", "# A bundle of adapter-export", "")
    yield (
        f"One ONNX graph of a frozen base with {count} adapter{'' if count == 1 else 's'}. Each request, or "
        "each row of a batch, selects an adapter. `manifest.json` describes all files."
    )
    yield ""
    yield from table_lines(("adapter", "kind", "task", "labels"), map(_cells, manifest.adapters[:_MOST_SHOWN]))
    if count > _MOST_SHOWN:
        yield f"\n… and {count - _MOST_SHOWN} more, in `manifest.json`."
    yield ""
    yield from _usage(manifest)
    yield ""
    yield (
        "Clients in C++, Java, Node and the browser read the same files. Each replays `golden/`, outputs of the "
        "training code, before it answers."
    )
    yield ""
    yield f"Digest, the SHA-256 of `manifest.json`, which covers all other files: `{digest}`"


def _cells(record: AdapterRecord) -> tuple[str, str, str, str]:
    task = record.task
    what = "" if task is None else f"{task.type}, {task.input}"
    return escaped(record.name), escaped(record.kind), escaped(what), "" if task is None else labels_cell(task.labels)


def _usage(manifest: Manifest) -> Iterator[str]:
    """Yield shell commands, and if an adapter answers texts, the same in Python and HTTP."""
    answering = next(
        (adapter.name for adapter in manifest.adapters if adapter.task is not None and adapter.task.input == "text"),
        None,
    )
    yield "```sh"
    yield "adapter-export verify .  # files and results on this machine"
    if answering is None or manifest.text is None:
        yield "adapter-export inspect .       # inputs, outputs, adapters"
        yield "```"
        return
    task = next(adapter.task for adapter in manifest.adapters if adapter.name == answering)
    has_sides = task is not None and task.has_sides
    yield f"adapter-export run . --adapter {answering} --text '{_EXAMPLE}'" + (" --side query" if has_sides else "")
    yield "adapter-export serve .         # then, elsewhere:"
    request = {"model": answering, "text": _EXAMPLE, **({"side": "query"} if has_sides else {})}
    yield f"curl localhost:8080/answer -d '{json.dumps(request)}'"
    yield "```"
    yield ""
    yield "```python"
    yield "from adapter_export.runtime import Bundle  # of the slim package: from adapter_export_runtime import Bundle"
    yield ""
    text = f'"{_EXAMPLE}"'
    if has_sides:
        yield "from adapter_export.text import SidedText"
        text = f'SidedText({text}, "query")'
    yield f'(answer,) = Bundle.open(".").texts().answer([{text}], "{answering}")'
    yield "print(answer.document())"
    yield "```"
