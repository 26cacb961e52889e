"""The schemas of what services and clients say: answers (docs/reference/format.md), and the bodies of HTTP.

The request is made of `adapter_export.plugins.serve.calls`. Answers have no records, so their forms are written here;
tests validate the answers of every task and every service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from descriptions import described

from adapter_export.plugins.serve.apis.chat_api import (
    CalledFunction,
    Chat,
    ChatMessage,
    ChatTool,
    ResponseFormat,
    TextPart,
    ToolCall,
)
from adapter_export.plugins.serve.apis.completions_api import Completions
from adapter_export.plugins.serve.apis.generated_texts import StreamOptions
from adapter_export.plugins.serve.apis.lora_api import LoadLora, UnloadLora
from adapter_export.plugins.serve.apis.ollama_requests import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaFunction,
    OllamaGenerate,
    OllamaMessage,
    OllamaOptions,
    OllamaShow,
    OllamaToolCall,
)
from adapter_export.plugins.serve.apis.openai_api import Embeddings
from adapter_export.plugins.serve.apis.rerank_api import Classify, CohereDocument, Rerank
from adapter_export.plugins.serve.apis.scoring_api import Pooling, Scores
from adapter_export.plugins.serve.apis.tei_api import (
    Embed,
    EmbedSparse,
    Predict,
    PredictParameters,
    SentencePairs,
    Similarity,
    SimilarityParameters,
)
from adapter_export.plugins.serve.apis.tokens_api import Detokenize, TeiTokenize, Tokenize
from adapter_export.plugins.serve.apis.transcriptions_api import Transcriptions
from adapter_export.plugins.serve.calls import Call, Question, Strict, TextOnSide, TextPair

Schema = dict[str, Any]

_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_PLACE: Schema = {"type": "integer", "minimum": 0}
_PREDICTION: Mapping[str, Schema] = {
    "label": {"description": "The most probable label.", "type": "string"},
    "probability": {"description": "Its probability.", **_PROBABILITY},
    "probabilities": {"description": "The probability of each label.", "$ref": "#/$defs/probabilities"},
}
_WRONG: Schema = {"description": "The error in one or more sentences.", "type": "string", "minLength": 1}
_FROM_TEXT: Mapping[str, Schema] = {
    "cut": {"description": "Tokens of the text that were left out, if any.", "type": "integer", "minimum": 1},
    "windows": {"description": "Windows that the text was read in, if several.", "type": "integer", "minimum": 2},
}


def _object(
    title: str, description: str, keys: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None
) -> Schema:
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": {**keys, **(optional or {})},
        "required": [*keys],
        "additionalProperties": False,
    }


def _answer(task: str | None, description: str, keys: Mapping[str, Schema], *, from_arrays: bool = False) -> Schema:
    """Return one form of an answer; answers from arrays say nothing of a text."""
    named: Mapping[str, Schema] = {
        "adapter": {
            "description": "The adapter that answered." if task else "The adapter; null for the base.",
            "type": "string" if task else ["string", "null"],
        },
        "task": {"description": "The problem type of its task." if task else "Null.", "const": task},
    }
    title = f"Answer of {task}" if task else "Outputs"
    return _object(title, description, {**named, **keys}, None if from_arrays else _FROM_TEXT)


def answer_schema() -> Schema:
    """Return the schema of an answer to one row."""
    score = {"score": {"description": "The score; higher is better.", "type": "number"}}
    numbers: Schema = {"type": "array", "items": {"type": "number"}}
    vectors: Mapping[str, Schema] = {
        "vectors": {"description": "A vector for each token.", "type": "array", "items": numbers}
    }
    token_places = {
        "token": {"description": "The token, as the tokenizer writes it.", "type": "string"},
        "start": {"description": "Its first character.", **_PLACE},
        "end": {"description": "The character after its last one.", **_PLACE},
    }

    def tokens(description: str, items: Schema) -> Mapping[str, Schema]:
        return {"tokens": {"description": description, "type": "array", "items": items}}

    forms = {
        "singleLabel": _answer("single_label", "The label of a row.", _PREDICTION),
        "multiLabel": _answer(
            "multi_label",
            "The labels of a row.",
            {
                "labels": {
                    "description": "The labels whose probability reaches their threshold.",
                    "type": "array",
                    "items": {"type": "string"},
                    "uniqueItems": True,
                },
                "probabilities": _PREDICTION["probabilities"],
            },
        ),
        "choiceScore": _answer("multiple_choice", "The score of one choice of a question.", score),
        "choice": _answer(
            "multiple_choice",
            "The best choice of a question.",
            {
                "choice": {"description": "The position of the best choice, from 0.", **_PLACE},
                "probabilities": {
                    "description": "The probability of each choice.",
                    "type": "array",
                    "items": _PROBABILITY,
                    "minItems": 1,
                },
            },
        ),
        "tokensOfArrays": _answer(
            "token",
            "The labels of a row of arrays.",
            tokens(
                "For each token its label; null for padding.", {"anyOf": [{"$ref": "#/$defs/label"}, {"type": "null"}]}
            ),
            from_arrays=True,
        ),
        "tokensOfText": _answer(
            "token",
            "The labels of a text.",
            tokens("The tokens that are not special, each with its label.", {"$ref": "#/$defs/token"}),
        ),
        "spanOfArrays": _answer(
            "span",
            "The span of a row of arrays that answers a question.",
            {
                "first_token": {"description": "The position of its first token in the row.", **_PLACE},
                "last_token": {"description": "The position of its last token in the row.", **_PLACE},
                "probability": _PREDICTION["probability"],
            },
            from_arrays=True,
        ),
        "spanOfText": _answer(
            "span",
            "The part of the second text that answers the first.",
            {
                "answer": {"description": "The part.", "type": "string"},
                "start": {"description": "Its first character in the second text.", **_PLACE},
                "end": {"description": "The character after its last one.", **_PLACE},
                "probability": _PREDICTION["probability"],
            },
        ),
        "regression": _answer(
            "regression", "The numbers of a row.", {"numbers": {"description": "The numbers.", **numbers}}
        ),
        "embedding": _answer(
            "embedding", "The vector of a row.", {"vector": {"description": "The vector.", **numbers}}
        ),
        "vectorsOfArrays": _answer(
            "multi_vector", "The vectors of the tokens of a row of arrays.", vectors, from_arrays=True
        ),
        "vectorsOfText": _answer(
            "multi_vector",
            "The vectors of the tokens of a text.",
            {
                "vector_tokens": {
                    "description": "The token of each vector, as the tokenizer writes it.",
                    "type": "array",
                    "items": {"type": "string"},
                },
                **vectors,
            },
        ),
        "sparse": _answer(
            "sparse_embedding",
            "The weights of vocabulary entries.",
            {
                "weights": {
                    "description": "The weights above 0, by the ids of their entries.",
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]+$"},
                    "additionalProperties": {"type": "number"},
                }
            },
        ),
        "ranking": _answer("ranking", "How well two texts go together.", score),
        "outputs": _answer(
            None,
            "The outputs of a row without a task, and of every row in `POST /run`.",
            {
                "outputs": {
                    "description": "Each output by its name, without the batch axis.",
                    "type": "object",
                    "additionalProperties": {"$ref": "#/$defs/nested"},
                }
            },
        ),
    }
    parts = {
        "label": _object("Label", "A label.", _PREDICTION),
        "nested": {
            "description": "A number or a truth value, or nested lists of them.",
            "anyOf": [{"type": ["number", "boolean"]}, {"type": "array", "items": {"$ref": "#/$defs/nested"}}],
        },
        "probabilities": {
            "description": "A probability by label.",
            "type": "object",
            "additionalProperties": _PROBABILITY,
        },
        "token": _object("Token", "A token and its label.", {**token_places, **_PREDICTION}),
    }
    return {
        "title": "Answer",
        "description": "The answer to one row, the same from every client and service.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in forms],
        "$defs": {**forms, **parts},
    }


_BODIES: tuple[type[Strict], ...] = (
    *(Scores, Pooling, Tokenize, Detokenize, LoadLora, UnloadLora),
    *(Embed, EmbedSparse, Predict, Similarity, TeiTokenize),
    *(OllamaChat, OllamaGenerate, OllamaEmbed, OllamaEmbeddings, OllamaShow),
)
"""Bodies of vLLM, TEI and Ollama, which have the names of their classes."""


def http_schema() -> Schema:
    """Return the schema of the bodies of HTTP; each is a definition, such as `http.schema.json#/$defs/call`."""
    task = {"anyOf": [{"$ref": "bundle-manifest.schema.json#/$defs/task"}, {"type": "null"}]}
    adapter = _object("Adapter", "An adapter.", {"task": {"description": "Its task; null if it has none.", **task}})
    rows = {
        "description": "An answer for each row, in the order of the request.",
        "type": "array",
        "items": {"$ref": "answer.schema.json"},
    }
    bodies = {
        "call": _request(),
        "rows": _object("Rows", "The response of `POST /answer` and `POST /run`.", {"rows": rows}),
        "adapters": {
            "description": "The response of `GET /adapters`, and of `PUT` and `DELETE /adapters/NAME`.",
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/adapter"},
        },
        "error": _object(
            "Error",
            "The response with any status from 400 on, but for the paths of OpenAI's API.",
            {"error": _WRONG},
        ),
        "embeddings": _of_model(Embeddings),
        "completions": _of_model(Completions),
        "chat": _of_model(Chat),
        "transcriptions": _of_model(Transcriptions),
        "rerank": _of_model(Rerank),
        "classify": _of_model(Classify),
        **{f"{kind.__name__[0].lower()}{kind.__name__[1:]}": _of_model(kind) for kind in _BODIES},
        "openaiError": _object(
            "OpenaiError",
            "The response with any status from 400 on under `/v1/` and `/openai/v1/`.",
            {"error": {"description": "The error.", "$ref": "#/$defs/openaiReason"}},
        ),
    }
    others: Mapping[str, type[Strict]] = {
        "textOnSide": TextOnSide,
        "textPair": TextPair,
        "question": Question,
        "cohereDocument": CohereDocument,
        "streamOptions": StreamOptions,
        "chatMessage": ChatMessage,
        "textPart": TextPart,
        "toolCall": ToolCall,
        "calledFunction": CalledFunction,
        "chatTool": ChatTool,
        "responseFormat": ResponseFormat,
        "sentencePairs": SentencePairs,
        "similarityParameters": SimilarityParameters,
        "predictParameters": PredictParameters,
        "ollamaOptions": OllamaOptions,
        "ollamaMessage": OllamaMessage,
        "ollamaToolCall": OllamaToolCall,
        "ollamaFunction": OllamaFunction,
    }
    parts = {
        "adapter": adapter,
        **{name: _of_model(kind) for name, kind in others.items()},
        "openaiReason": _object(
            "OpenaiReason",
            "A reason as OpenAI's clients read it.",
            {
                "message": _WRONG,
                "type": {"description": "The kind of error.", "enum": ["invalid_request_error", "server_error"]},
                "param": {"description": "Null.", "type": "null"},
                "code": {"description": "The status of HTTP.", "type": "integer"},
            },
        ),
    }
    return {
        "title": "Http",
        "description": "A body of the HTTP services. Refer to one of them as `http.schema.json#/$defs/call`.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in bodies],
        "$defs": {**bodies, **parts},
    }


def _request() -> Schema:
    one_of = {"text": "string", "texts": "array", "file": "string", "files": "array", "inputs": "object"}
    rows = [{"required": [key], "properties": {key: {"type": kind}}} for key, kind in one_of.items()]
    return {**_of_model(Call), "oneOf": rows}


def _of_model(kind: type[Strict]) -> Schema:
    """Return the schema of a model of pydantic, with the descriptions of its docstring."""
    found = kind.model_json_schema(ref_template="{model}")
    description, of_keys = described(kind)
    keys = {key: {"description": of_keys[key], **_plain(own)} for key, own in found["properties"].items()}
    made = _object(found["title"], description, keys)
    return (
        {**made, "required": found["required"]}
        if "required" in found
        else {k: v for k, v in made.items() if k != "required"}
    )


def _plain(schema: Schema) -> Schema:
    """Leave out what pydantic says of names and defaults, and put plain types together."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
    if "$ref" in kept:
        name = kept["$ref"]
        return {"$ref": f"#/$defs/{name[0].lower()}{name[1:]}"}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _plain(kept[key])
    if "anyOf" in kept:
        forms = [_plain(one) for one in kept.pop("anyOf")]
        typed = [one for one in forms if one != {"type": "null"}]
        if len(typed) == 1 and isinstance(typed[0].get("type"), str):
            return {**kept, **typed[0], "type": [typed[0]["type"], "null"]}
        return {**kept, "anyOf": forms}
    return kept
