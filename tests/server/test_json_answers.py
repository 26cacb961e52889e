"""`response_format` of chats: answers that follow a JSON schema, each request its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest
from bodies import checked
from random_schemas import random_schema
from served import made_app
from starlette.testclient import TestClient
from tiny_generators import generating

from adapter_export.runtime import Bundle, Decoding

MESSAGES = [{"role": "user", "content": "How far is the moon?"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "bytes") / "bundle"


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[TestClient]:
    with made_app(f"llama={bundle}", quiet=True) as client:
        yield client


def _named(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _posted(service: TestClient, **call: Any) -> Any:
    options = {"model": "a", "messages": MESSAGES, "temperature": 0, "max_tokens": 200, **call}
    return service.post("/v1/chat/completions", json=checked(options, "chat"))


class Distance(pydantic.BaseModel):
    """An answer as users of OpenAI's client declare it."""

    kilometres: int = pydantic.Field(ge=0, le=999_999)
    near: bool
    names: list[str] = pydantic.Field(max_length=2)


def test_the_client_of_openai_parses_answers(service: TestClient, bundle: Path) -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=service)
    options: Any = {"model": "b", "messages": MESSAGES, "max_tokens": 300, "temperature": 0.7, "seed": 8}
    short = {"type": "string", "maxLength": 5}
    schema = {**Distance.model_json_schema(), "additionalProperties": False}
    schema["properties"]["names"]["items"] = short
    whole = client.chat.completions.create(**options, response_format=_named(schema))
    assert whole.choices[0].finish_reason == "stop"
    text = str(whole.choices[0].message.content)
    assert Distance.model_validate_json(text).kilometres >= 0
    pieces = client.chat.completions.create(**options, response_format=_named(schema), stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    writer = Bundle.open(bundle).writer()
    decoding = Decoding(300, temperature=0.7, seed=8, json_schema=schema)
    assert writer.write([writer.chat.render(MESSAGES)], "b", decoding=decoding)[0].text == text
    plain = client.chat.completions.create(**options, response_format={"type": "json_object"})
    assert str(plain.choices[0].message.content).startswith("{")


def test_concurrent_requests_follow_their_own_schemas(service: TestClient) -> None:
    schemas = [random_schema(seed) for seed in range(6)] + [None, None]
    calls = [
        {"model": "ab"[at % 2], "response_format": None if schema is None else _named(schema), "seed": at}
        for at, schema in enumerate(schemas)
    ]
    alone = [_posted(service, **call).json()["choices"][0] for call in calls]
    with ThreadPoolExecutor(len(calls)) as clients:
        together = list(clients.map(lambda call: _posted(service, **call).json()["choices"][0], calls))
    assert together == alone
    for schema, choice in zip(schemas, together, strict=True):
        if schema is not None and choice["finish_reason"] == "stop":
            jsonschema.Draft202012Validator(schema).validate(json.loads(choice["message"]["content"]))
    assert sum(choice["finish_reason"] == "stop" for choice in together[:6]) >= 2
    several = _posted(service, n=3, temperature=1, response_format=_named({"enum": ["ja", "nein"]})).json()["choices"]
    assert {choice["message"]["content"] for choice in several} <= {'"ja"', '"nein"'}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (_named({"not": {}}), "cannot be followed"),
        (_named({"allOf": [{"type": "integer", "multipleOf": each} for each in (97, 89, 83)]}), "timeout"),
        ({"type": "json_schema"}, "has no JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "grammar": "x"}}, "unknown keys"),
        ({"type": "text", "json_schema": {"schema": {}}}, "needs the type `json_schema`"),
    ],
)
def test_a_format_that_cannot_be_followed_is_refused(service: TestClient, form: Any, reason: str) -> None:
    answer = _posted(service, response_format=form)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
