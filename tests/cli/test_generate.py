"""`generate`: texts that a bundle writes, those of its `writer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_generators import generating

import adapter_export as ae
from adapter_export.commands.bundles.run import run
from adapter_export.errors import UsageError
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
    found = cli.done("generate", bundle, "--adapter", "a", "--prompt", PROMPTS[0], "--max-new-tokens", "6")
    assert found.stdout == f"{expected.text}\n"
    assert "raise it with `--max-new-tokens N`" in found.stderr
    stop = expected.text.split()[3]
    cut = cli.done("generate", bundle, "--adapter", "a", "--prompt", PROMPTS[0], "--stop", stop)
    assert cut.stdout == f"{expected.text.partition(stop)[0]}\n"


def test_each_prompt_has_its_adapter(cli, bundle: Path) -> None:
    words = ["--adapters", "b,base", "--max-new-tokens", "6"]
    words += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    expected = [one.document() for one in _expected(bundle, "b", None)]
    assert cli.json("generate", bundle, *words)["rows"] == expected
    lines = cli.done("generate", bundle, "--many", *words).stdout.splitlines()
    assert [json.loads(line) for line in lines] == expected
    shown = cli.done("generate", bundle, *words).stdout
    assert [shown.index(one["text"]) for one in expected] == sorted(shown.index(one["text"]) for one in expected)


def test_a_file_beside_the_bundle_answers_its_prompts(cli, bundle: Path) -> None:
    (expected,) = _expected(bundle, "a")
    call = ("generate", bundle, "--prompt", PROMPTS[0], "--max-new-tokens", "6")
    found = cli.done(*call, "--adapter-file", bundle / "adapters" / "a.onnx_adapter")
    assert found.stdout == f"{expected.text}\n"


def test_a_text_follows_a_schema(
    cli: Any, tmp_path: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"a": {"enum": ["é", 2]}}, "required": ["a"], "maxProperties": 1}'
    )
    call = ("generate", generating(tmp_path_factory, "bytes") / "bundle", "--adapter", "b", "--prompt", "How far?")
    found = cli.done(*call, "--json-schema", schema, "--max-new-tokens", "100")
    assert json.loads(found.stdout)["a"] in ("é", 2)
    schema.write_text('{"not": {}}')
    cli.refused(3, "the JSON schema cannot be followed", *call, "--json-schema", schema)
    schema.write_text("{}")
    plain = (call[0], bundle, *call[2:])
    cli.refused(3, "the tokenizer cannot follow a JSON schema", *plain, "--json-schema", schema)


def test_python_yields_the_same_texts(bundle: Path) -> None:
    texts = ae.generate(Bundle.open(bundle), PROMPTS, adapters=("b", "-"), max_new_tokens=6)
    assert list(texts.whole) == _expected(bundle, "b", None)
    both = ae.generate(bundle, PROMPTS, adapters=("b", "-"), fan_out=True, max_new_tokens=1).whole
    assert [(text.prompt, text.adapter) for text in both] == [(p, name) for p in PROMPTS for name in ("b", None)]


def test_generate_refuses_invalid_calls(cli, bundle: Path, text_folder: Path) -> None:
    prompt = ("--prompt", PROMPTS[0])
    cli.refused(2, "no adapter is named", "generate", bundle, *prompt)
    cli.refused(2, "--temperature", "generate", bundle, "--adapter", "a", *prompt, "--top-k", "3")
    cli.refused(2, "'--prompt'", "generate", bundle, "--adapter", "a")
    cli.refused(2, "exclude each other", "generate", bundle, "--adapter", "a", *prompt, "--adapters", "a,b")
    cli.refused(2, "Add `--adapters`", "generate", bundle, "--adapter", "a", *prompt, "--fan-out")
    cli.refused(2, "2 adapters for 3 rows", "generate", bundle, *prompt * 3, "--adapters", "a,b")
    cli.refused(3, "prompt 0", "generate", bundle, "--adapter", "a", "--prompt", "")
    cli.refused(3, "prompt 0", "generate", bundle, "--adapter", "nobody", *prompt)
    call = ("generate", bundle, "--adapter", "a", *prompt, "--max-new-tokens", "100000")
    cli.refused(3, "more new tokens than the base takes, prompt included; found 100,000", *call)
    cli.refused(3, "does not generate text", "generate", text_folder / "bundle", "--adapter", "topic", *prompt)


def test_run_names_the_command_for_prompts(cli, bundle: Path) -> None:
    instead = "run `adapter-export generate BUNDLE --prompt TEXT`"
    cli.refused(2, f"`run` has no `--prompt`; {instead}", "run", bundle, "--prompt", PROMPTS[0])
    cli.refused(2, f"`run` has no `--max-new-tokens`; {instead}", "run", bundle, "--max-new-tokens", "3")
    cli.refused(2, "Call `adapter-export generate BUNDLE", "run", bundle, "--adapter", "a", "--text", "w5")
    with pytest.raises(UsageError, match="has no such argument; found `prompts`"):
        run(bundle, prompts=PROMPTS)
