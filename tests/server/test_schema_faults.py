"""Refused requests: each route names the place, the value and what it expects, in words of this server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from adapter_export.errors import RequestError
from adapter_export.plugins.serve.apis.chat_api import Chat
from adapter_export.plugins.serve.apis.completions_api import Completions
from adapter_export.plugins.serve.apis.inference_protocol import _Infer
from adapter_export.plugins.serve.apis.openai_api import Embeddings
from adapter_export.plugins.serve.apis.rerank_api import Classify, Rerank
from adapter_export.plugins.serve.calls import Call
from adapter_export.plugins.serve.schema_faults import form_error

BODIES: tuple[type[BaseModel], ...] = (Call, Embeddings, Rerank, Classify, Completions, Chat, _Infer)
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    "",
    "left",
    "x" * 300,
    [],
    [1],
    [None],
    [[]],
    [{}],
    {},
    {"a": 1},
    float("1e308"),
)
THEIRS = re.compile(
    r"[Ii]nput should|[Ff]ield required|[Vv]alue error|valid (?:string|list|dict)|Extra inputs|JsonValue|type="
)


def _requests() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """Yield requests with a wrong value in each field, and one with an unknown field."""
    for kind in BODIES:
        yield kind, {"nobody": 1}
        yield from ((kind, {name: value}) for name in kind.model_fields for value in WRONG)


def test_no_route_quotes_pydantic() -> None:
    refused = 0
    for kind, body in _requests():
        try:
            kind.model_validate(body)
        except ValidationError as error:
            message = form_error(error, body, kind).sentence()
            refused += 1
            assert not THEIRS.search(message), message
            assert "the request is not of the expected form; found " in message
        except RequestError:
            continue
    assert refused > 200


@pytest.mark.parametrize("kind", BODIES)
def test_types_are_tested_that_have_fields(kind: type[BaseModel]) -> None:
    assert kind.model_fields
    assert not get_args(kind)
