"""The page on WebGPU, which has to pass the golden data of a bundle before it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clients import Client, alike, last_line
from small_bundle import text_bundle

from adapter_export.runtime import Bundle

TEXT, ADAPTERS = "who wrote the dull book ?", ["topic", "tone", "mood"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def seen(browser_client: Client, bundle: Path) -> dict[str, Any]:
    """The page's notes and answers, by the fault of `gpu.mjs`."""
    node, program = browser_client.command
    script = Client((node,), browser_client.variants, browser_client.environment)
    rows = json.dumps({"texts": [{"text": TEXT}] * len(ADAPTERS), "adapters": ADAPTERS})
    done = script.call(Path(__file__).with_name("gpu.mjs"), Path(program).parent, bundle, rows)
    assert done.returncode == 0, last_line(done)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_webgpu_answers_rows_of_different_adapters(seen: dict[str, Any], bundle: Path) -> None:
    assert (seen["none"]["provider"], seen["none"]["note"]) == ("webgpu", "")
    assert "on WebGPU" in seen["none"]["state"]
    assert seen["none"]["answers"] != seen["missing"]["answers"]  # each rounds in its own way
    session = Bundle.open(bundle)
    expected = [one.document() for one in session.texts().answer([TEXT] * 3, adapters=ADAPTERS)]
    budget = max(max(record.golden.absolute.values()) for record in session.manifest.adapters)
    for name in ("none", "missing"):
        for found, wanted in zip(seen[name]["answers"], expected, strict=True):
            alike(found["probabilities"], wanted["probabilities"], budget)  # softmax does not enlarge errors


@pytest.mark.parametrize(("fault", "reason"), [("missing", "no WebGPU adapter"), ("zero", "golden batches differ")])
def test_page_falls_back_to_webassembly(seen: dict[str, Any], fault: str, reason: str) -> None:
    found = seen[fault]
    assert found["provider"] == "wasm"
    assert found["note"].startswith("WebGPU is not used: ")
    assert reason in found["note"]
    assert "in WebAssembly" in found["state"]
    assert found["answers"] == seen["missing"]["answers"]


def test_the_command_line_refuses_other_providers(browser_client: Client, bundle: Path) -> None:
    done = browser_client.call("verify", bundle, PROVIDER="cuda")
    assert done.returncode == 1
    assert "found cuda; expected `wasm` or `webgpu`" in last_line(done)
