"""Digest of what each version of a format allows: its schema without titles and descriptions, in `versions.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.bundle.chosen_form import FORM_VERSION
from adapter_export.format.adapter_files import ADAPTER_VERSION
from adapter_export.format.check_report import REPORT_VERSION, SELF_TEST_VERSION
from adapter_export.format.derivation import DERIVATION_VERSION
from adapter_export.format.generation import CHAT_VERSION
from adapter_export.format.golden_batches import GOLDEN_BATCHES_VERSION
from adapter_export.format.golden_texts import GOLDEN_TEXTS_VERSION
from adapter_export.format.manifest_json import MANIFEST_VERSION
from adapter_export.format.media import MEDIA_VERSION
from adapter_export.format.site_map_json import SITE_MAP_VERSION
from adapter_export.onnx_backend.base.base_identity import IDENTITY_VERSION
from adapter_export.plugins.lab.comparison import COMPARISON_VERSION

VERSIONS: Mapping[str, str] = {
    "adapter-graph": ADAPTER_VERSION,
    "base-identity": IDENTITY_VERSION,
    "bundle-manifest": MANIFEST_VERSION,
    "chat-templates": CHAT_VERSION,
    "check-report": REPORT_VERSION,
    "comparison": COMPARISON_VERSION,
    "derivation": DERIVATION_VERSION,
    "golden-batches": GOLDEN_BATCHES_VERSION,
    "golden-chats": CHAT_VERSION,
    "golden-media": MEDIA_VERSION,
    "golden-texts": GOLDEN_TEXTS_VERSION,
    "measured-form": FORM_VERSION,
    "self-test": SELF_TEST_VERSION,
    "site-map": SITE_MAP_VERSION,
}
"""The version that this package writes, by the name of the schema."""

FILE = Path(__file__).with_name("versions.json")

Digests = dict[str, dict[str, str]]


def schema_digest(text: str) -> str:
    """Return the SHA-256 of a schema without its prose, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(_rules(json.loads(text)), sort_keys=True).encode()).hexdigest()


def _rules(schema: Any) -> Any:
    """Leave out titles and descriptions; a key of `properties` with such a name has an object, not a string."""
    if isinstance(schema, list):
        return [_rules(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    prose = {"title", "description", "$id"}
    return {key: _rules(value) for key, value in schema.items() if not (key in prose and isinstance(value, str))}


def read_digests() -> Digests:
    """Return the digest of each schema, by its name and version."""
    digests: Digests = json.loads(FILE.read_text("utf-8"))
    return digests


def changed_without_version(texts: Mapping[str, str]) -> list[str]:
    """Return the names of schemas that differ from those of the same version."""
    digests = read_digests()
    return [
        name
        for name, version in VERSIONS.items()
        if digests.get(name, {}).get(version, schema_digest(texts[name])) != schema_digest(texts[name])
    ]


def write_digests(texts: Mapping[str, str]) -> None:
    """Record the digest of each schema under its version; older versions stay."""
    digests = read_digests() if FILE.exists() else {}
    for name, version in VERSIONS.items():
        digests.setdefault(name, {})[version] = schema_digest(texts[name])
    FILE.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")
