"""`run --prompt`: texts that a bundle writes, those of its `writer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_generators import generating

from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.text_writer import Generated

PROMPTS = ("w5 w9", "w27")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama") / "bundle"


def _expected(bundle: Path, *adapters: str | None, count: int = 6) -> list[Generated]:
    prompts = PROMPTS if len(adapters) == 2 else PROMPTS[:1]
    return Bundle.open(bundle).writer().write(prompts, adapters=adapters, decoding=Decoding(count))


def test_a_text_is_written_behind_its_prompt(cli, bundle: Path) -> None:
    (expected,) = _expected(bundle, "a")
    found = cli.done("run", bundle, "--adapter", "a", "--prompt", PROMPTS[0], "--max-new-tokens", "6")
    assert found.stdout == f"{expected.text}\n"
    assert "raise it with `--max-new-tokens N`" in found.stderr
    stop = expected.text.split()[3]
    cut = cli.done("run", bundle, "--adapter", "a", "--prompt", PROMPTS[0], "--stop", stop)
    assert cut.stdout == f"{expected.text.partition(stop)[0]}\n"


def test_each_prompt_has_its_adapter(cli, bundle: Path) -> None:
    words = ["--adapters", "b,base", "--max-new-tokens", "6"]
    words += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    expected = [one.document() for one in _expected(bundle, "b", None)]
    assert cli.json("run", bundle, *words)["rows"] == expected
    lines = cli.done("run", bundle, "--many", *words).stdout.splitlines()
    assert [json.loads(line) for line in lines] == expected
    shown = cli.done("run", bundle, *words).stdout
    assert [shown.index(one["text"]) for one in expected] == sorted(shown.index(one["text"]) for one in expected)


def test_wrong_calls_are_refused(cli, bundle: Path, text_folder: Path) -> None:
    prompt = ("--prompt", PROMPTS[0])
    cli.refused(2, "no adapter is named", "run", bundle, *prompt)
    cli.refused(2, "--temperature", "run", bundle, "--adapter", "a", *prompt, "--top-k", "3")
    cli.refused(2, "`--prompt`", "run", bundle, "--adapter", "a", "--text", "w5", "--seed", "3")
    cli.refused(2, "exclude each other", "run", bundle, "--adapter", "a", *prompt, "--strength", "2")
    cli.refused(2, "Give `--prompt TEXT`", "run", bundle, "--adapter", "a", "--text", "w5")
    cli.refused(3, "prompt 0", "run", bundle, "--adapter", "a", "--prompt", "")
    cli.refused(3, "does not generate text", "run", text_folder / "bundle", "--adapter", "topic", *prompt)
