"""The demo page: labels with bars, duration, and switching adapters with a click."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import Client, last_line

from adapter_export.runtime import Bundle, Session
from adapter_export.text import Pair, Tokenizer

TEXT = "a dull book and not a good film"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def seen(browser_client: Client, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Contents of the page after each step of `clicks.mjs`."""
    folder = tmp_path_factory.mktemp("clicks")
    file = folder / "new.onnx_adapter"
    shutil.copyfile(small_bundle / "adapters" / "tone.onnx_adapter", file)
    node, page = browser_client.command
    words = [Path(__file__).with_name("clicks.mjs"), Path(page).parent, small_bundle, TEXT, file, folder / "page.png"]
    script = Client((node,), browser_client.variants, browser_client.environment)
    done = script.call(*words)
    assert done.returncode == 0, last_line(done)
    assert (folder / "page.png").read_bytes()[:8] == PNG
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def session(small_bundle: Path) -> Session:
    return Bundle.open(small_bundle).session(threads=1)


@pytest.fixture(scope="module")
def inputs(small_bundle: Path) -> dict[str, np.ndarray]:
    return dict(Tokenizer.from_folder(small_bundle, 64).batch([TEXT], ["input_ids", "attention_mask"]))


def _holds(block: dict[str, Any], expected: dict[str, float]) -> None:
    """Labels, the likeliest first, percentages, and bars of these lengths."""
    ordered = sorted(expected.items(), key=lambda pair: -pair[1])
    assert [row["label"] for row in block["rows"]] == [label for label, _ in ordered]
    for row, (_, probability) in zip(block["rows"], ordered, strict=True):
        assert row["number"] == f"{100 * probability:.1f} %"
        assert row["bar"] == pytest.approx(probability, abs=0.01)


def test_page_shows_the_answer_of_the_selected_adapter(
    seen: dict[str, Any], session: Session, inputs: dict[str, np.ndarray]
) -> None:
    shown = seen["tone"]
    assert shown["chosen"] == "tone"
    assert re.fullmatch(r"10 tokens, one call: \d+\.\d ms", shown["latency"])
    _holds(shown["blocks"][0], dict(session.classify(inputs, "tone")[0].probabilities))


def test_page_shows_the_answers_of_all_adapters(
    seen: dict[str, Any], session: Session, inputs: dict[str, np.ndarray]
) -> None:
    shown = seen["all"]
    assert "6 rows in one call" in shown["latency"]
    assert [block["title"] for block in shown["blocks"]] == ["topic", "tone", "mood", "fusion", "fixed", "attended"]
    for block in shown["blocks"]:
        _holds(block, dict(session.classify(inputs, block["title"])[0].probabilities))


def test_page_shows_the_outputs_of_the_base(
    seen: dict[str, Any], session: Session, inputs: dict[str, np.ndarray]
) -> None:
    (line,) = seen["none"]["blocks"][0]["lines"]
    numbers = ", ".join(f"{number:.3f}" for number in session.run(inputs)["hidden"][0, 0, :6])
    assert line == f"hidden [10 × 16]: {numbers}, …"


def test_page_selects_a_loaded_adapter_file(
    seen: dict[str, Any], session: Session, inputs: dict[str, np.ndarray]
) -> None:
    """It is selected at once; its task is unknown."""
    shown = seen["loaded"]
    assert (shown["error"], shown["chosen"]) == (None, "new")
    numbers = ", ".join(f"{number:.3f}" for number in session.run(inputs, "tone")["logits"][0])
    assert f"logits [2]: {numbers}" in shown["blocks"][0]["lines"]


def test_page_offers_fields_for_pairs_and_answers(browser_client: Client, text_folder: Path) -> None:
    """A second field for the tasks that take pairs; the page asks of its first texts."""
    node, page = browser_client.command
    script = Client((node,), browser_client.variants, browser_client.environment)
    names = ["place", "words", "choice"]
    done = script.call(Path(__file__).with_name("kinds.mjs"), Path(page).parent, text_folder / "bundle", *names)
    assert done.returncode == 0, last_line(done)
    found = json.loads(done.stdout)
    assert [found[name]["second"] for name in names] == [True, False, True]
    asked = Pair("Who wrote Hamlet?", "Shakespeare wrote Hamlet.")
    (expected,) = Bundle.open(text_folder / "bundle").texts().answer([asked], "place")
    answer = found["place"]["answer"]
    assert [answer[key] for key in ("answer", "start", "end")] == list(expected.span or ())
    assert [one["token"] for one in found["words"]["answer"]["tokens"]] == ["who", "wrote", "hamlet", "?"]
    assert found["choice"]["answer"]["choice"] == 0
