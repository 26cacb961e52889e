"""Every client reproduces the golden vectors of one bundle, in every variant that it can run, its texts and batches."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, Client
from tampering import edit_adapter
from text_bundle import TASKS

NAMES = ("wide", "narrow", "first")
BAKED = ("wide",)
PNG = b"\x89PNG\r\n\x1a\n"

Finding = tuple[str, str | None, bool]


def _expected(variants: Iterable[str], tokenizes: bool) -> set[Finding]:
    """The base and all adapters in each variant, mixed batches in the bank, baked adapters, golden texts and rows."""
    found: set[Finding] = {("texts", name, False) for name in (*NAMES, *([None] if tokenizes else []))}
    found.add(("batches", None, True))
    for variant in variants:
        subjects = BAKED if variant == "baked" else (None, *NAMES)
        found |= {(variant, name, False) for name in subjects}
    return found | {(variant, None, True) for variant in variants if variant in ("bank", "fanout")}


def _facts(findings: list[dict[str, Any]]) -> set[Finding]:
    assert all(0 <= each["worst"] <= 1 for each in findings)
    findings = [each for each in findings if each["variant"] not in ("parts", "recorded")]
    for finding in findings:  # the base has no answers to texts, only ids
        least = -1 if (finding["variant"], finding["adapter"]) == ("texts", None) else 0
        assert least < finding["worst"] <= 1
    return {(finding["variant"], finding["adapter"], finding["mixed"]) for finding in findings}


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_the_golden_vectors_hold(client: Client, conformance_bundle: Path, tmp_path: Path) -> None:
    """In a browser, an image of the page is taken, too."""
    image = tmp_path / "page.png"
    assert _facts(client.verify(conformance_bundle, SCREENSHOT=str(image))) == _expected(
        client.variants, client.tokenizes
    )
    if "CHROMIUM" in client.environment:
        assert image.read_bytes()[:8] == PNG
        width, height = struct.unpack(">II", image.read_bytes()[16:24])
        assert min(width, height) >= 400


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_checksums_of_slots_show_other_tensors(client: Client, checked_bundle: Path, tmp_path: Path) -> None:
    """One element of one tensor is another float32: no other output shows that. Golden batches are answered without."""
    findings = client.verify(checked_bundle)
    assert {finding["variant"] for finding in findings} >= {*client.variants, "batches"}
    assert max(finding["worst"] for finding in findings) <= 1
    copy = shutil.copytree(checked_bundle, tmp_path / "bundle")

    def change(tensors: dict[str, np.ndarray]) -> None:
        ours = (tensor for name, tensor in sorted(tensors.items()) if "layers.1.ffn" in name and tensor.any())
        next(ours).flat[0] += np.float32(1e-6)

    edit_adapter(copy, "topic", change)
    client.refuses("does not compute what the reference computed", "verify", copy)


def test_client_without_a_tokenizer_checks_golden_texts_from_ids(
    cpp_client: Client, text_folder: Path, tmp_path: Path
) -> None:
    """From their ids; it says that it did not check how text becomes ids."""
    bundle = text_folder / "bundle"
    found = [each for each in cpp_client.verify(bundle) if each["variant"] == "texts"]
    assert {each["adapter"] for each in found} == set(TASKS)
    assert all(0 < each["worst"] <= 1 and not each["tokenized"] for each in found)
    assert "how text becomes ids is not checked" in cpp_client.call("verify", bundle).stdout
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (topic,) = [each for each in manifest["adapters"] if each["name"] == "topic"]
    topic["task"]["labels"].reverse()
    del manifest["checksum"]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    cpp_client.refuses("does not compute what the reference computed", "verify", copy)
