"""Routes of Text Embeddings Inference (TEI), and of Hugging Face's inference API for one model.

TEI serves one model, so its requests name none. Here they have an optional `model`, and each path also exists below
`/models/NAME`, for clients that are configured with an address only.

https://huggingface.github.io/text-embeddings-inference, https://huggingface.co/docs/inference-providers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI
from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import LabelSet, Prediction, SparseVector, TokenVectors
from adapter_export.plugins.serve.apis.openai_api import encoded, other_task, text_or_texts, vector_of
from adapter_export.plugins.serve.calls import Call, Strict, TextOnSide, TextPair, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.models import Target
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.answerer import AnsweredRow, LongTexts, Reading
from adapter_export.tables import number_of
from adapter_export.text import TextSide
from adapter_export.version import __version__

_TINY = 1e-12
"""Least length by which a vector is divided."""

_PREFIX = "/models/{name:path}"
"""Prefix of the paths with the name of a model, as in Hugging Face's inference API."""

Direction = Literal["Left", "Right", "left", "right"]
Sentences = Annotated[Words | list[Words], text_or_texts("send texts")]


def _check_sequences(value: object, info: ValidationInfo) -> object:
    """Refuse a list of texts that is no pair, and lists with too few or too many texts, with the form to send."""
    name, is_flat = f"`{info.field_name}`", isinstance(value, list) and all(isinstance(row, str) for row in value)
    if is_flat and isinstance(value, list) and len(value) not in (1, 2):
        raise RequestError(
            f"{name} is a list of texts, which is a pair",
            found=number_of(len(value), "text"),
            expected="a text, or a pair `[text, text]`",
            fix="send a batch as a list of lists: `[[text], [text]]`",
        )
    if isinstance(value, list) and not 1 <= len(value) <= MOST_ROWS:
        raise RequestError(f"{name} has too few or too many texts", found=len(value), expected=f"1 to {MOST_ROWS}")
    return value


Sequences = Annotated[
    Words | list[Words] | list[Annotated[list[Words], Field(min_length=1, max_length=2)]],
    BeforeValidator(_check_sequences),
]
"""The `inputs` of a classification: a text, a pair, or a batch of both as lists of one or two texts."""


class TeiOptions(Strict):
    """Options of several requests of TEI.

    Attributes:
        model: the name of a model or a route; optional if only the base head has a task.
        truncate: truncate long texts instead of refusing them.
        truncation_direction: the side on which texts are truncated, which must be that of the adapter's task.
    """

    model: str | None = None
    truncate: StrictBool | None = False
    truncation_direction: Direction | None = None

    @property
    def long(self) -> LongTexts:
        """Treatment of long texts."""
        return "cut" if self.truncate else "refuse"

    def check_direction(self, rows: Sequence[AnsweredRow]) -> None:
        """Refuse answers to texts that were truncated on another side than the request names."""
        for row in rows:
            task = row.head.task
            if self.truncation_direction and task and self.truncation_direction.lower() != task.truncation:
                expected = f"`{task.truncation}`, on which the adapter was trained"
                found = f"`{self.truncation_direction}`"
                where = f"model `{row.head.adapter}`"
                raise RequestError("truncates texts on another side", where=where, found=found, expected=expected)


class Embed(TeiOptions):
    """The body of `POST /embed`.

    Attributes:
        inputs: a text or a list of texts. Token ids are refused: they belong to another tokenizer.
        normalize: scale vectors to length 1. False needs an adapter whose task does not.
        prompt_name: query or document, for adapters with a prefix for each.
        dimensions: width of the vectors, one of the `widths` of the adapter's task. Default: the full width.
        encoding_format: only numbers.
    """

    inputs: Sentences
    normalize: StrictBool | None = True
    prompt_name: TextSide | None = None
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float"] | None = None

    def vector(self, row: AnsweredRow) -> list[float] | str:
        """Return the vector of a row as the options require."""
        vector, task = vector_of(row, self.dimensions), row.head.task
        if self.normalize is False and task is not None and task.normalised:
            raise RequestError(
                "returns vectors of length 1",
                where=f"model `{row.head.adapter}`",
                found="`normalize` false",
                expected="`normalize` true",
            )
        return encoded(vector if self.normalize is False else unit(vector))


class SentencePairs(Strict):
    """The `inputs` of `POST /similarity`.

    Attributes:
        source_sentence: the text to compare.
        sentences: the texts that it is compared with.
    """

    source_sentence: Words
    sentences: list[Words] = Field(min_length=1, max_length=MOST_ROWS - 1)


class SimilarityParameters(Strict):
    """Parameters of `POST /similarity`.

    Attributes:
        truncate: truncate long texts instead of refusing them.
        truncation_direction: as in `POST /embed`.
        prompt_name: as in `POST /embed`, for all texts.
    """

    truncate: StrictBool | None = False
    truncation_direction: Direction | None = None
    prompt_name: TextSide | None = None


class Similarity(Strict):
    """The body of `POST /similarity`.

    Attributes:
        inputs: a text, and those that it is compared with.
        model: the name of a model or a route; optional if only the base head has a task.
        parameters: options.
    """

    inputs: SentencePairs
    model: str | None = None
    parameters: SimilarityParameters | None = None

    def embed(self) -> Embed:
        """Return the request for the vectors of all texts, the compared one first."""
        texts = [self.inputs.source_sentence, *self.inputs.sentences]
        options = self.parameters or SimilarityParameters()
        return Embed(inputs=texts, model=self.model, **dict(options))


class PredictParameters(Strict):
    """Parameters of classification in Hugging Face's inference API.

    Attributes:
        top_k: number of labels, the most probable first. Default: all.
    """

    top_k: int | None = Field(default=None, ge=1)


class Predict(TeiOptions):
    """The body of `POST /predict`.

    Attributes:
        inputs: a text, a pair of texts as a list, or a batch as a list of lists of one or two texts.
        raw_scores: return logits.
        parameters: parameters of Hugging Face's inference API.
    """

    inputs: Sequences
    raw_scores: StrictBool | None = False
    parameters: PredictParameters | None = None

    @property
    def is_batch(self) -> bool:
        """True if the response is a list of lists."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)

    def texts(self) -> list[str | TextPair]:
        """Return each text, or each pair of texts."""
        inputs = self.inputs
        if isinstance(inputs, str):
            return [inputs]
        batch = [row for row in inputs if isinstance(row, list)]
        pair = [text for text in inputs if isinstance(text, str)]
        return [texts[0] if len(texts) == 1 else TextPair(text=texts[0], pair=texts[1]) for texts in batch or [pair]]

    def scores(self, row: AnsweredRow) -> list[dict[str, Any]]:
        """Return the labels of a row with their scores, the best first."""
        answer, task = row.answer.answer, row.head.task
        if not isinstance(answer, Prediction | LabelSet) or task is None:
            raise other_task(row, "does not classify texts", "`single_label` or `multi_label`")
        scores = answer.probabilities
        if self.raw_scores:
            scores = dict(zip(task.labels, map(float, row.results[0]), strict=True))
        best = sorted(scores, key=lambda label: -scores[label])
        most = None if self.parameters is None else self.parameters.top_k
        return [{"label": label, "score": scores[label]} for label in best[:most]]


class EmbedSparse(TeiOptions):
    """The body of `POST /embed_sparse`.

    Attributes:
        inputs: a text or a list of texts.
        prompt_name: query or document, for adapters with a prefix for each.
    """

    inputs: Sentences
    prompt_name: TextSide | None = None

    def entries(self, row: AnsweredRow) -> list[dict[str, Any]]:
        """Return the vocabulary entries of a row with a weight above 0, by their ids."""
        answer = row.answer.answer
        if not isinstance(answer, SparseVector):
            raise other_task(row, "does not return sparse vectors", "`sparse_embedding`")
        weights = zip(answer.ids.tolist(), answer.weights.tolist(), strict=True)
        return [{"index": entry, "value": weight} for entry, weight in sorted(weights)]


class EmbedAll(TeiOptions):
    """The body of `POST /embed_all`.

    Attributes:
        inputs: a text or a list of texts.
        prompt_name: query or document, for adapters with a prefix for each, or with a skip list.
    """

    inputs: Sentences
    prompt_name: TextSide | None = None

    def vectors(self, row: AnsweredRow) -> list[list[float]]:
        """Return the vector of each token of a row."""
        answer = row.answer.answer
        if not isinstance(answer, TokenVectors):
            raise other_task(row, "does not return a vector for each token", "`multi_vector`")
        vectors: list[list[float]] = answer.vectors.tolist()
        return vectors


Body = TypeVar("Body", TeiOptions, Embed, EmbedSparse, EmbedAll, Predict, Similarity)


class TeiApi:
    """Routes of TEI, with and without the name of a model in the path."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for prefix in ("", _PREFIX):
            app.add_route(f"{prefix}/embed", self.embed, methods=["POST"])
            app.add_route(f"{prefix}/embed_sparse", self.embed_sparse, methods=["POST"])
            app.add_route(f"{prefix}/embed_all", self.embed_all, methods=["POST"])
            app.add_route(f"{prefix}/predict", self.predict, methods=["POST"])
            app.add_route(f"{prefix}/similarity", self.similarity, methods=["POST"])
            app.add_route(f"{prefix}/info", self.info, methods=["GET"])
        for path in (f"{_PREFIX}/pipeline/{{task}}", _PREFIX):
            app.add_route(path, self.pipeline, methods=["POST"])

    async def embed(self, request: HttpRequest) -> Response:
        """Return the vectors of texts."""
        body = await self._body(Embed, request)
        return JSONResponse([body.vector(row) for row in await self._embedded(body, request)])

    async def embed_sparse(self, request: HttpRequest) -> Response:
        """Return the sparse vectors of texts."""
        body = await self._body(EmbedSparse, request)
        return JSONResponse([body.entries(row) for row in await self._embedded(body, request)])

    async def embed_all(self, request: HttpRequest) -> Response:
        """Return a vector for each token of texts."""
        body = await self._body(EmbedAll, request)
        return JSONResponse([body.vectors(row) for row in await self._embedded(body, request)])

    async def predict(self, request: HttpRequest) -> Response:
        """Return the labels of texts with their scores."""
        body = await self._body(Predict, request)
        rows = await self._predicted(body, request)
        return JSONResponse(rows if body.is_batch else rows[0])

    async def similarity(self, request: HttpRequest) -> Response:
        """Return the cosine of the vector of a text with those of others."""
        body = (await self._body(Similarity, request)).embed()
        rows = await self._embedded(body, request)
        source, *others = [unit(vector_of(row)) for row in rows]
        return JSONResponse([float(np.dot(source, other)) for other in others])

    async def info(self, request: HttpRequest) -> Response:
        """Return facts of a model."""
        name = request.path_params.get("name", request.query_params.get("model"))
        target = await self._target(name, request)
        return JSONResponse(self._info(target))

    async def pipeline(self, request: HttpRequest) -> Response:
        """Answer by the task of the model, in the forms of Hugging Face's inference API."""
        name = request.path_params["name"]
        task = _task(await self._target(name, request))
        wanted = request.path_params.get("task")
        known = {} if task is None else _pipelines(task)
        if task is None or not known or wanted not in (None, *known):
            raise RequestError(
                "has another task than the request" if known else "has no task of this API",
                where=f"model `{name}`",
                found="no task" if task is None else f"`{task.type}`",
                expected=" or ".join(f"`{pipeline}`" for pipeline in known) or "an embedding or a classification",
            )
        if task.kind.is_vector:
            compares = wanted == "sentence-similarity"
            return await (self.similarity(request) if compares else self.embed(request))
        body = await self._body(Predict, request)
        return JSONResponse(await self._predicted(body, request))

    async def _body(self, kind: type[Body], request: HttpRequest) -> Body:
        """Return the body of a request with the model of its path."""
        body, name = parse(kind, await self._context.body(request)), request.path_params.get("name")
        if name is not None and body.model not in (None, name):
            raise RequestError("names two models", found=f"`{name}` and `{body.model}`", expected="one of them")
        return body if name is None else body.model_copy(update={"model": name})

    async def _embedded(self, body: Embed | EmbedSparse | EmbedAll, request: HttpRequest) -> list[AnsweredRow]:
        texts, side = [body.inputs] if isinstance(body.inputs, str) else body.inputs, body.prompt_name
        sided = [text if side is None else TextOnSide(text=text, side=side) for text in texts]
        return await self._answered(body, sided, request)

    async def _predicted(self, body: Predict, request: HttpRequest) -> list[list[dict[str, Any]]]:
        return [body.scores(row) for row in await self._answered(body, body.texts(), request)]

    async def _answered(self, body: TeiOptions, texts: Sequence[Any], request: HttpRequest) -> list[AnsweredRow]:
        call = Call(model=body.model, texts=list(texts))
        reading = Reading(long=body.long)
        rows = await self._context.in_time(self._service.answer_rows(call, request.state.key, request.state, reading))
        body.check_direction(rows)
        return rows

    async def _target(self, name: str | None, request: HttpRequest) -> Target:
        """Return a model by name. Default: the base with its head, if no adapter has a task."""
        if name is not None:
            return await self._service.target(name, request.state.key, request.state)
        served = self._service.models.only()
        return Target(served, served.session.named(None) or served.session.base_head)

    def _info(self, target: Target) -> Mapping[str, Any]:
        manifest, task, limits = target.served.bundle.manifest, _task(target), self._context.limits
        return {
            "model_id": target.name,
            "model_sha": target.digest,
            "model_dtype": manifest.base_precision,
            "model_type": _model_type(task, target.name),
            "max_concurrent_requests": limits.max_connections,
            "max_input_length": (None if task is None else task.max_tokens) or manifest.max_tokens,
            "max_batch_tokens": limits.max_queue_tokens,
            "max_batch_requests": target.served.settings.max_batch_size,
            "max_client_batch_size": MOST_ROWS,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }


def unit(vector: np.ndarray) -> np.ndarray:
    """Return a vector scaled to length 1."""
    return vector / np.float32(max(float(np.linalg.norm(vector)), _TINY))


def _task(target: Target) -> Task | None:
    return None if target.adapter is None else target.served.session.task(target.adapter)


def _pipelines(task: Task) -> Sequence[str]:
    """Return the names of a task in Hugging Face's inference API."""
    if task.kind.is_vector:
        return ("feature-extraction", "sentence-similarity")
    return ("text-classification",) if task.kind.has_labels and task.output == "logits" else ()


def _model_type(task: Task | None, name: str) -> Mapping[str, Any]:
    """Return the kind of a model as TEI names it; RequestError for tasks that TEI does not have."""
    if task is not None and task.kind.embeds:
        return {"embedding": {"pooling": "splade" if task.kind.reads_vocabulary else task.pooling or "unknown"}}
    if task is not None and task.kind.ranks:
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    if task is not None and _pipelines(task):
        by_number = {str(number): label for number, label in enumerate(task.labels)}
        return {"classifier": {"id2label": by_number, "label2id": {label: int(at) for at, label in by_number.items()}}}
    raise RequestError(
        "has no task that Text Embeddings Inference knows",
        where=f"model `{name}`",
        found="no task" if task is None else f"`{task.type}`",
        expected="an embedding, a classification of texts, or a ranking",
        fix="`GET /adapters` lists the tasks of all adapters",
    )
