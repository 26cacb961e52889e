"""Texts in, answers out: the clients that have a tokenizer say the same of a text as Python, or refuse it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from clients import Client, alike
from text_bundle import LIMIT, LONGEST, TASKS

from adapter_export.format.manifest_json import list_files
from adapter_export.graph.tasks.answers import Asked
from adapter_export.runtime import Bundle
from adapter_export.text import Pair, Tokenizer

CLIENTS = ("node_client", "browser_client", "python_client")

pytestmark = pytest.mark.parametrize("client", CLIENTS, indirect=True)

LONG = " ".join(str(number) for number in range(LIMIT + 7))
CONTEXT = "Zoë said: ΟΔΥΣΣΕΥΣ lives in Kraków\u2014really, an É\u0301MIGRÉ 🙂 of İstanbul."

ASKED: list[tuple[str, Asked]] = [
    ("topic", "Who wrote ΟΔΥΣΣΕΥΣ? Cafe\u0301, Straße 🎉"),
    ("topic", ""),
    ("topic", LONG),
    ("tags", LONG),
    ("follows", Pair("a man plays", "")),
    ("follows", Pair(LONG, LONG)),
    ("follows", Pair("short", LONG)),
    ("words", "Jane Doe met unbelievably 🙂 İlker in Kraków."),
    ("words", "Jane [SEP]Doe met [MASK] 🙂 in Kraków. [sep]"),
    ("place", Pair("Who [MASK] in Kraków?", f"[SEP] 🙂 {CONTEXT}")),
    ("place", Pair("Who lives in Kraków?", CONTEXT)),
    ("place", Pair("Who?", f"{CONTEXT} {CONTEXT} {CONTEXT}")),
    ("likeness", Pair("A man plays a guitar.", "A MAN plays the guitár.")),
    ("vector", "how far is the moon"),
    ("order", Pair("moon distance", "It is 384,400 km away.")),
    ("choice", Pair("Where is it?", "in the box")),
    ("choice", [Pair("Where is it?", one) for one in ("in the box", "on the table over there", LONG)]),
]


def _words(asked: Asked) -> list[str]:
    if isinstance(asked, Pair):
        return ["--text", asked.first, "--pair", asked.second]
    if isinstance(asked, str):
        return ["--text", asked]
    pairs = [one for one in asked if isinstance(one, Pair)]
    return ["--text", pairs[0].first, *(word for one in pairs for word in ("--pair", one.second))]


def test_clients_answer_every_problem_type_from_text(client: Client, text_folder: Path) -> None:
    """In one call, each text with its own adapter: the same as single texts in Python."""
    assert {TASKS[name].type for name, _ in ASKED} == {task.type for task in TASKS.values()}
    adapters = [word for name, _ in ASKED for word in ("--adapter", name)]
    texts = [word for _, asked in ASKED for word in _words(asked)]
    done = client.call("run", text_folder / "bundle", *texts, *adapters)
    assert done.returncode == 0, done.stderr
    reader = Bundle.open(text_folder / "bundle").texts()
    rows = json.loads(done.stdout)
    for row, (name, asked) in zip(rows, ASKED, strict=True):
        expected = reader.answer([asked], name)[0].document()
        alike(row, {"adapter": name, "task": TASKS[name].type, **expected})
    assert any("cut" in row for row in rows)


def test_clients_reproduce_golden_texts(client: Client, text_folder: Path) -> None:
    """Ids of all texts, bit for bit, and the answers of torch."""
    found = [each for each in client.verify(text_folder / "bundle") if each["variant"] == "texts"]
    assert [each["adapter"] for each in found] == [None, *TASKS]
    assert all(each["tokenized"] and each["passed"] and not each["faults"] for each in found)
    assert all(0 < each["worst"] <= 1 for each in found if each["adapter"] is not None)


@pytest.fixture
def tampered(text_folder: Path, tmp_path: Path) -> Path:
    """A copy whose files may be changed, with hashes that are right again after `_rehash`."""
    return shutil.copytree(text_folder / "bundle", tmp_path / "bundle")


def _rehash(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    document.pop("checksum", None)
    document["files"] = [vars(record) for record in list_files(folder)]
    path.write_text(json.dumps(document), encoding="utf-8")


def _adapter(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in manifest["adapters"] if one["name"] == name)
    return found


FAULTS = {
    "a tokenizer that does not lowercase": (lambda d: d["normalizer"].update(lowercase=False), "upper case"),
    "a tokenizer that keeps accents": (lambda d: d["normalizer"].update(strip_accents=False), "french"),
    "a tokenizer without special tokens": (lambda d: d.update(post_processor=None), "plain"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_golden_texts_detect_a_changed_tokenizer(client: Client, tampered: Path, fault: str) -> None:
    """Golden vectors begin at ids and end at logits, and would not see it."""
    plant, name = FAULTS[fault]
    path = tampered / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    plant(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    _rehash(tampered, lambda _: None)
    assert name in _differing(client, tampered)[None]


def _differing(client: Client, bundle: Path) -> dict[str | None, dict[str, str]]:
    """Return the differing golden texts by adapter, with the differences."""
    done = client.call("verify", bundle, "--json")
    assert done.returncode == 1, done.stdout
    assert "golden texts differ" in done.stderr
    found = {each["adapter"]: each for each in json.loads(done.stdout) if each["variant"] == "texts"}
    faults = {name: {one["name"]: one["fault"] for one in each["faults"]} for name, each in found.items()}
    first = next(names for names in faults.values() if names)
    assert all(f"`{name}`" in done.stderr for name in first)
    assert [each["passed"] for each in found.values()] == [not names for names in faults.values()]
    return faults


def test_golden_texts_detect_faults_of_each_task(client: Client, tampered: Path) -> None:
    """A fault in each of some adapters, all found in one go, and none in the others."""
    changes = {
        "topic": {"max_tokens": LIMIT + 1},
        "tags": {"truncation": "right", "thresholds": [0.99, 0.99, 0.99]},
        "follows": {"labels": ["no", "yes"]},
        "vector": {"prefix": "passage: "},
    }
    _rehash(tampered, lambda d: [_adapter(d, name)["task"].update(change) for name, change in changes.items()])
    faults = _differing(client, tampered)
    assert {name for name, found in faults.items() if found} == changes.keys()
    assert "cut" in faults["topic"]
    assert faults["tags"]["cut"].startswith("ids ")
    assert any(fault.startswith("`labels` found") for fault in faults["tags"].values())
    assert any(fault.startswith("`label` found") for fault in faults["follows"].values())
    assert "plain" in faults["vector"]


def test_a_record_with_fewer_tokens_than_the_golden_texts_have(client: Client, tampered: Path) -> None:
    _rehash(tampered, lambda d: d["lengths"]["sequence"].update(maximum=100))
    done = client.call("verify", tampered)
    assert done.returncode, done.stdout
    assert "120" in done.stderr
    assert "1 to 100" in done.stderr


def test_texts_that_javascript_tokenizes_differently_are_refused(client: Client, tampered: Path) -> None:
    """Where a tokenizer cleans nothing, JavaScript ends words elsewhere: its clients refuse such texts, and say so."""
    kept = {"adapters": [], "bank": None, "head": None, "golden_batches": None}
    _rehash(tampered, lambda d: d.update(kept, graphs=_without_bank(d["graphs"])))
    _rehash(tampered, lambda d: d["golden"].update(recorded=_without_bank(d["golden"]["recorded"])))
    path, texts = tampered / "tokenizer.json", tampered / "golden" / "texts.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["normalizer"] = None
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    _retell(texts, Tokenizer.from_json(path.read_text("utf-8"), LONGEST))
    _rehash(tampered, lambda d: d["text"].update(digest=json.loads(texts.read_text("utf-8"))["digest"]))
    done = client.call("verify", tampered)
    if client.command[0] == sys.executable:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1, done.stdout
    assert "2 that differ, `zero width`, `control characters`" in done.stderr
    client.refuses("U+FEFF", "run", tampered, "--text", "a\ufeffb")
    assert client.call("run", tampered, "--text", "a b").returncode == 0


def _without_bank(of_graphs: Mapping[str, str]) -> dict[str, str]:
    return {variant: each for variant, each in of_graphs.items() if variant != "bank"}


def _retell(path: Path, tokenizer: Tokenizer) -> None:
    """Replace the ids in the base's golden texts by those of another tokenizer."""
    document = json.loads(path.read_text("utf-8"))
    for text in document["sets"][0]["texts"]:
        (row,) = tokenizer.rows([text["text"] if text["pair"] is None else Pair(text["text"], text["pair"])])
        text.update(ids=row.encoding.ids, token_type_ids=row.encoding.type_ids)
    document.update(digest=tokenizer.digest, sets=document["sets"][:1])
    path.write_text(json.dumps(document), encoding="utf-8")


REFUSED: dict[str, tuple[str, Asked, str]] = {
    "a pair for a task of one text": ("topic", Pair("a", "b"), "one text, as"),
    "one text for a task of pairs": ("follows", "a", "a pair of texts, as"),
    "choices for another task": ("follows", [Pair("a", "b"), Pair("a", "c")], "a pair of texts, as"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_inputs_of_another_kind_than_the_task_are_refused(client: Client, text_folder: Path, kind: str) -> None:
    adapter, asked, words = REFUSED[kind]
    client.refuses(
        "of another kind than the task takes", "run", text_folder / "bundle", *_words(asked), "--adapter", adapter
    )
    client.refuses(words, "run", text_folder / "bundle", *_words(asked), "--adapter", adapter)


def test_adapter_of_another_tokenizer_refuses_texts(client: Client, tampered: Path) -> None:
    """It gets no texts; the others do."""
    _rehash(tampered, lambda d: _adapter(d, "topic")["task"].update(tokenizer="0" * 64))
    client.refuses("was trained with another tokenizer", "run", tampered, "--text", "a", "--adapter", "topic")
    done = client.call("run", tampered, "--text", "a", "--adapter", "words")
    assert done.returncode == 0, done.stderr


def test_limits_without_room_for_text_are_refused(client: Client, tampered: Path) -> None:
    _rehash(tampered, lambda d: _adapter(d, "follows")["task"].update(max_tokens=3))
    words = ["--text", "a", "--pair", "b", "--adapter", "follows"]
    client.refuses("leaves no room for the text", "run", tampered, *words)
