"""Texts that follow a JSON schema: each row its own, with random weights and adapters, and beside any neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from random_schemas import random_schema
from tiny_generators import BYTES, generating

from adapter_export.errors import RequestError
from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.json_guide import JsonSchemas
from adapter_export.runtime.generation.text_writer import Generated, TextWriter

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TextWriter:
    return Bundle.open(generating(tmp_path_factory, "bytes") / "bundle").writer()


def _accepted(text: Generated, schema: dict[str, Any]) -> bool:
    """Validate a complete text by jsonschema; return whether it is complete."""
    if text.finish == "length":
        return False
    assert text.finish == "end"
    validator = jsonschema.Draft202012Validator
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text.text))
    return True


def test_texts_of_random_weights_follow_50_random_schemas(writer: TextWriter) -> None:
    complete = 0
    for seed in range(50):
        schema = random_schema(seed)
        options: dict[str, Any] = {"json_schema": schema, "seed": seed, "max_new_tokens": 160}
        for decoding in (Decoding(temperature=1.0, **options), Decoding(**options)):
            texts = writer.write(["How far?"] * 2, adapters=["a", None], decoding=decoding)
            complete += sum(_accepted(text, schema) for text in texts)
    assert complete > 100  # of 200; random weights like white space


def test_rows_with_other_schemas_and_adapters_do_not_change_a_row(writer: TextWriter) -> None:
    prompts, adapters = ["How far is the moon?", "a", "And the sun?", "é"], ["a", "b", None, "a"]
    decodings = [Decoding(120, temperature=0.8, seed=3, json_schema=schema) for schema in (PERSON, random_schema(1))]
    decodings += [Decoding(40, temperature=0.8, seed=5), Decoding(40, json_schema={"type": "object"})]
    alone = [
        writer.write([prompt], adapters=[adapter], decoding=decoding)[0]
        for prompt, adapter, decoding in zip(prompts, adapters, decodings, strict=True)
    ]
    assert _accepted(alone[0], PERSON)
    rows = writer.running()
    texts = [
        writer.opened([prompt], [adapter], decoding)[0]
        for prompt, adapter, decoding in zip(prompts, adapters, decodings, strict=True)
    ]
    rows.join([text.row for text in texts])
    done: dict[int, Generated] = {}
    widest = 0
    while len(done) < len(texts):
        stepped = rows.step()
        widest = max(widest, *rows.calls)
        for row in stepped:
            at = next(at for at, text in enumerate(texts) if text.row is row)
            piece = texts[at].piece()
            if piece is not None and piece.done is not None:
                done[at] = piece.done
    assert widest == len(texts)  # they shared calls
    assert [done[at] for at in range(len(texts))] == alone


def test_the_mask_is_that_of_the_grammar(writer: TextWriter) -> None:
    """An independent oracle: a token is allowed if the document so far with it begins some document of the schema."""
    words = [f'{{"a":{number}}}' for number in range(10, 30)]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 10, "maximum": 29}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tokenizer = writer._tokenizer
    guide = JsonSchemas(tokenizer, [1]).guide(schema)
    tokens = [tokenizer.token_text(token) for token in range(400)]
    written = ""
    for expected in '{"a":1':
        allowed = guide.allowed(BYTES)
        assert allowed.shape == (BYTES,)
        assert not allowed[400:].any()
        for token, text in enumerate(tokens):
            if token > 5 and text.strip() and "\ufffd" not in text:
                assert allowed[token] == any(word.startswith(written + text) for word in words), (written, text)
        token = next(token for token in np.flatnonzero(allowed) if tokens[token] == expected)
        guide.take(int(token))
        written += expected
    for expected in ("7", "}"):
        assert not guide.allowed(BYTES)[1]
        guide.take(tokens.index(expected))
    assert np.flatnonzero(guide.allowed(BYTES)).tolist() == [1]  # the end, and nothing else


def test_json_schemas_are_read_from_files(writer: TextWriter, tmp_path: Path) -> None:
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    texts = [
        writer.write(["a"], "b", decoding=Decoding(100, json_schema=schema))[0]
        for schema in (PERSON, tmp_path / "person.json", str(tmp_path / "person.json"))
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"$ref": "https://example.org/a.json"}, "not present"),
        ({"allOf": [{"type": "integer", "multipleOf": number} for number in (97, 89, 83)]}, "timeout after 2 seconds"),
        ({"enum": ["x" * 100] * 1000}, "too large"),
        ([{"type": "object"}], "is not a JSON schema"),
        ({"const": float("nan")}, "is not a JSON schema"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(writer: TextWriter, schema: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        writer.write(["a"], "a", decoding=Decoding(json_schema=schema))
    assert _accepted(writer.write(["a"], "a", decoding=Decoding(100, json_schema=PERSON))[0], PERSON)


def test_nesting_is_bounded(writer: TextWriter) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    assert writer.opened(["a"], ["a"], Decoding(json_schema=deep))
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(RequestError, match="nested too deeply"):
        writer.write(["a"], "a", decoding=Decoding(json_schema=deep))


def test_tokens_and_other_tokenizers_follow_no_schema(
    writer: TextWriter, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = Bundle.open(generating(tmp_path_factory, "llama") / "bundle")
    with pytest.raises(RequestError, match="the tokenizer cannot follow a JSON schema"):
        bundle.writer().write(["w5"], "a", decoding=Decoding(json_schema=PERSON))
    with pytest.raises(RequestError, match="tokens follow no JSON schema"):
        bundle.session().generate([[5]], "a", decoding=Decoding(json_schema=PERSON))
    with pytest.raises(RequestError, match="names no token that ends a text"):
        JsonSchemas(writer._tokenizer, ()).guide(PERSON)
