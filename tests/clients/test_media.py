"""A bundle that reads images: every client runs it on values, and says that it reads no files and no texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clients import CLIENTS, Client
from small_media import noise

from adapter_export.modalities import FILE_MODALITIES
from adapter_export.runtime import Bundle

pytestmark = pytest.mark.parametrize("client", CLIENTS, indirect=True)


def test_values_are_answered_and_texts_refused(client: Client, vit_folder: Path, tmp_path: Path) -> None:
    bundle = vit_folder / "bundle"
    assert client.verify(bundle)
    opened = Bundle.open(bundle)
    assert opened.manifest.media is not None
    pixels = noise(20, 30, 3)
    values = FILE_MODALITIES["image"].apply(pixels, opened.manifest.media.steps or ())[None]
    (tmp_path / "in.json").write_text(json.dumps({"pixel_values": values.tolist()}))
    (found,) = client.run(bundle, tmp_path / "in.json", "--adapter", "base-head")
    assert found["label"] == opened.files("image").answer([pixels])[0].document()["label"]
    if client.tokenizes:
        client.refuses("images" if "python" in client.command[0] else "pixel_values", "run", bundle, "--text", "x")
