"""Clients refuse keys of a manifest that they do not know, so they must know all that this package writes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from adapter_export.format.manifest import Manifest

EXAMPLES = Path(__file__).parents[2] / "examples"
LISTS = {
    "node": ("node/src/core/manifest.ts", r"  manifest:\n(.*?),\n  input:"),
    "cpp": ("cpp/src/format/manifest.cpp", r'"a manifest"\);\n  known\(document, \{(.*?)\}\);'),
}
"""The file of a client with the keys of a manifest, and an expression for their list."""


@pytest.mark.parametrize("client", LISTS)
def test_clients_know_every_key_of_a_manifest(client: str) -> None:
    path, pattern = LISTS[client]
    listed = re.search(pattern, (EXAMPLES / path).read_text("utf-8"), re.S)
    assert listed is not None
    assert set(re.findall(r"\w+", listed[1])) == {field.name for field in fields(Manifest)}
