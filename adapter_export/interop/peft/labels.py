"""The names of classes, which PEFT does not save and the config of the base may have."""

from __future__ import annotations

from pathlib import Path

from adapter_export.format.canonical import read_json


def known_labels(config: Path) -> tuple[str, ...]:
    """The values of `id2label` in the `config.json` of a Hugging Face folder, in the order of the classes.

    Raises:
        FileError, FormatError: the file is there and cannot be read.
    """
    document = read_json(config) if config.is_file() else {}
    names = document.get("id2label") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return ()
    in_order = sorted((int(index), name) for index, name in names.items() if index.isdecimal())
    complete = [index for index, _ in in_order] == list(range(len(names))) and len(set(names.values())) == len(names)
    return tuple(name for _, name in in_order) if complete else ()
