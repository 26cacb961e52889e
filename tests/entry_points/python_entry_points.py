"""The entry points of the Python package that need no process of their own: the API and the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from asked_bundles import Bundle
from asking import (
    Document,
    EntryPoint,
    RefusedError,
    answer_of_result,
    context_of,
    length,
    shape,
    stacked,
    together,
    weighing,
)
from click.testing import CliRunner
from oracle import Row

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import AdapterExportError
from adapter_export.providers import ProviderName
from adapter_export.runtime import Request, Session
from adapter_export.runtime.answerer import Answerer
from adapter_export.runtime.answerer import Row as AnsweredRow
from adapter_export.text import Pair


@cache
def session(folder: Path, provider: ProviderName = "cpu") -> Session:
    return ae.open_bundle(folder).session(provider=provider, threads=1)


def name_of(bundle: Bundle, row: Row) -> str | None:
    """Return the adapter of a row; defaults to the base head."""
    recipe = bundle.oracle.recipe(row)
    return None if recipe is None else recipe.name


def asked_of(row: Row) -> Any:
    """A row as the Python API takes it."""
    if isinstance(row.asked, list):
        return [Pair(*one) for one in row.asked]
    return row.asked if isinstance(row.asked, str) else Pair(*row.asked)


def named(bundle: Bundle, row: Row, found: Document) -> Document:
    """An answer whose adapter the caller knows, as a document."""
    recipe = bundle.oracle.recipe(row)
    assert recipe is not None
    return {"adapter": recipe.name, "task": recipe.task["type"], **found}


def answers(bundle: Bundle, row: Row) -> bool:
    """Return whether an adapter answers a row, not the base."""
    return bundle.oracle.recipe(row) is not None


def refusing(ask: Any) -> Any:
    """Turn the errors of the package into refusals."""

    def asking(bundle: Bundle, rows: Sequence[Row], tool: Any) -> Sequence[Document]:
        try:
            return ask(bundle, rows, tool)  # type: ignore[no-any-return]
        except AdapterExportError as error:
            raise RefusedError(str(error)) from error

    return asking


@refusing
def run_many(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Session.run_many`, whose results become answers as the oracle's do."""
    requests = [Request(bundle.arrays(row), name_of(bundle, row), row.strength, row.weights) for row in rows]
    return [
        _of_outputs(bundle, row, found)
        for row, found in zip(rows, session(bundle.folder).run_many(requests), strict=True)
    ]


def _of_outputs(bundle: Bundle, row: Row, outputs: Any) -> Document:
    recipe = bundle.oracle.recipe(row)
    (tokens,) = bundle.oracle.tokens(row)
    count = len(tokens.encoding.ids)
    if recipe is None:
        own = {name: array[0][:count] if array.ndim > 2 else array[0] for name, array in outputs.items()}
        return {"adapter": None, "task": None, "outputs": {name: array.tolist() for name, array in own.items()}}
    return answer_of_result(bundle, row, outputs[session(bundle.folder).output(recipe.name)][0])


@refusing
def session_answer(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Session.answer` on padded arrays."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        inputs = stacked(bundle, some)
        width = inputs["input_ids"].shape[1]
        contexts = [context_of(bundle, row, width) for row in some]
        choice: dict[str, Any] = {"context": [None if one is None else np.array(one, bool) for one in contexts]}
        if some[0].weights is not None:
            found = session(bundle.folder).answer(inputs, some[0].adapter, weights=some[0].weights, **choice)
        else:
            names, strengths = [name_of(bundle, row) for row in some], [row.strength for row in some]
            found = session(bundle.folder).answer(inputs, adapters=names, strength=strengths, **choice)
        return [named(bundle, row, one.document()) for row, one in zip(some, found, strict=True)]

    return together(rows, lambda row: (weighing(row), length(bundle, row)), ask)


@refusing
def texts_answer(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Bundle.texts(session).answer`."""
    reader = ae.open_bundle(bundle.folder, verify=False).texts(session(bundle.folder))

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        texts = [asked_of(row) for row in some]
        if some[0].weights is not None:
            found = reader.answer(texts, some[0].adapter, weights=some[0].weights)
        else:
            found = reader.answer(
                texts, adapters=[row.adapter for row in some], strength=[row.strength for row in some]
            )
        return [named(bundle, row, one.document()) for row, one in zip(some, found, strict=True)]

    return together(rows, weighing, ask)


def _answered(bundle: Bundle, rows: Sequence[Row], provider: ProviderName) -> Sequence[Document]:
    opened = session(bundle.folder, provider)
    reader = ae.open_bundle(bundle.folder, verify=False).texts(opened)
    asked = [AnsweredRow(asked_of(row), row.adapter, row.strength, row.weights) for row in rows]
    return [one.document() for one in Answerer(opened, reader).answer(asked)]


@refusing
def answerer(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Answerer`, from text."""
    return _answered(bundle, rows, "cpu")


@refusing
def openvino(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Answerer`, from text, with OpenVINO's runtime."""
    return _answered(bundle, rows, "openvino")


@refusing
def answerer_arrays(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Answerer`, from arrays."""
    asked = []
    for row in rows:
        context = context_of(bundle, row)
        given = None if context is None else np.array(context, bool)
        asked.append(AnsweredRow(bundle.arrays(row), row.adapter, row.strength, row.weights, given))
    return [one.document() for one in Answerer(session(bundle.folder)).answer(asked)]


def _run(bundle: Bundle, *words: str | Path) -> list[str]:
    """The lines that `adapter-export run` prints."""
    done = CliRunner().invoke(main, ["run", str(bundle.folder), *map(str, words)], catch_exceptions=False)
    if done.exit_code:
        raise RefusedError(done.stderr)
    return list(done.stdout.splitlines())


def _rows(lines: Sequence[str]) -> list[Document]:
    return [_answer(one) for one in json.loads("\n".join(lines))["rows"]]


def _answer(document: Document) -> Document:
    """Return only the answer: `run` also repeats the question."""
    return {key: value for key, value in document.items() if key not in ("text", "pair", "choices")}


def _choices(row: Row) -> tuple[Any, ...]:
    """Return the properties shared by all rows of one `run` call: one text or two, and common options."""
    return shape(row) == "text", row.strength, weighing(row)


def _common(bundle: Bundle, rows: Sequence[Row]) -> list[str]:
    """The options of a call that are for all rows."""
    first = rows[0]
    words = [] if first.strength == 1 else ["--strength", f"{first.strength:g}"]
    if first.weights is not None:
        words += ["--weights", ",".join(f"{name}={weight:g}" for name, weight in first.weights.items())]
    return words


def _adapters(rows: Sequence[Row]) -> list[str]:
    """An adapter for all rows, or one for each."""
    names = [row.adapter or "-" for row in rows]
    if len({*names}) > 1:
        return ["--adapters", ",".join(names)]
    return ["--adapter", names[0]]


def run_texts(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`run --text … --json`; a question with choices is a call of its own."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        words = [word for row in some for piece in row.pieces[:1] for word in _words(piece)]
        words += [word for row in some for piece in row.pieces[1:] for word in ("--pair", piece[1])]
        return _rows(_run(bundle, *words, *_adapters(some), *_common(bundle, some), "--json"))

    return together(rows, lambda row: (*_choices(row), str(row.asked) if shape(row) == "choices" else None), ask)


def _words(piece: Any) -> list[str]:
    return ["--text", piece] if isinstance(piece, str) else ["--text", piece[0], "--pair", piece[1]]


def _table(rows: Sequence[Row], folder: Path) -> list[str]:
    """Write rows as JSON lines, and return the options that name the file and its columns."""
    lines = []
    for row in rows:
        first = row.pieces[0]
        cells: dict[str, Any] = {"text": first if isinstance(first, str) else first[0], "adapter": row.adapter or "-"}
        if shape(row) != "text":
            cells["pair"] = row.asked[1] if shape(row) == "pair" else [piece[1] for piece in row.pieces]
        lines.append(json.dumps(cells))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pair = [] if shape(rows[0]) == "text" else ["--pair-column", "pair"]
    return [str(path), *pair]


def _adapter_of_table(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    return ["--adapter-column", "adapter"] if first.weights is None else ["--adapter", str(first.adapter)]


def run_data(bundle: Bundle, rows: Sequence[Row], _: Any, *many: str) -> Sequence[Document]:
    """`run --data FILE --json`."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--data", *_table(some, Path(folder)), *_adapter_of_table(some), *_common(bundle, some)]
            lines = _run(bundle, *words, *(many or ("--json",)))
        return [_answer(json.loads(line)) for line in lines] if many else _rows(lines)

    return together(rows, _choices, ask)


def run_data_many(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`run --data FILE --many`."""
    return run_data(bundle, rows, _, "--many")


def run_arrays(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`run --arrays FILE --json` on padded arrays."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        inputs = stacked(bundle, some)
        width = inputs["input_ids"].shape[1]
        contexts = [context_of(bundle, row, width) for row in some]
        if any(contexts):
            inputs["context"] = np.array([one or [0] * width for one in contexts], bool)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.npz")
            np.savez(path, **inputs)
            return _rows(_run(bundle, "--arrays", path, *_adapters(some), *_common(bundle, some), "--json"))

    return together(rows, lambda row: (row.strength, weighing(row), length(bundle, row)), ask)


@refusing
def shards(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`ae.run_many`, which `run --shards` calls."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        with tempfile.TemporaryDirectory() as folder:
            path, *pair = _table(some, Path(folder))
            choice: dict[str, Any] = {"adapter_column": "adapter"}
            if some[0].weights is not None:
                choice = {"adapter": some[0].adapter, "weights": some[0].weights}
            if some[0].strength != 1:
                choice["strength"] = some[0].strength
            column = pair[-1] if pair else None
            done = ae.run_many(bundle.folder, path, Path(folder, "out"), pair_column=column, shard_rows=7, **choice)
            lines = [
                line for file in sorted(done.folder.glob("*.jsonl")) for line in file.read_text("utf-8").split("\n")
            ]
        return [_answer(json.loads(line)) for line in lines if line]

    return together(rows, _choices, ask)


def retrieves(bundle: Bundle, row: Row) -> bool:
    """Rows of vectors and of rankings, which are all that libraries for retrieval ask."""
    recipe = bundle.oracle.recipe(row)
    plain = row.strength == 1 and row.weights is None
    return plain and recipe is not None and recipe.task["type"] in ("embedding", "ranking")


def embeds(bundle: Bundle, row: Row) -> bool:
    """Rows of vectors."""
    return retrieves(bundle, row) and isinstance(row.asked, str)


def _retrieved(bundle: Bundle, row: Row, found: Document) -> Document:
    """An answer as a document; these libraries do not return the number of tokens that were cut."""
    cut = bundle.oracle.tokens(row)[0].cut
    return named(bundle, row, {**found, **({"cut": cut} if cut else {})})


@refusing
def sentence_transformers(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`SentenceTransformer.encode` and `CrossEncoder.predict`."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from adapter_export.plugins.integrations.sentence_transformers import BundleEmbedder, BundleReranker

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        given = ae.open_bundle(bundle.folder, verify=False), some[0].adapter
        asked = [row.asked for row in some]
        if isinstance(asked[0], str):
            module = BundleEmbedder(*given, session=session(bundle.folder))
            vectors = SentenceTransformer(modules=[module], device="cpu").encode(asked)
            found = [{"vector": one.tolist()} for one in vectors]
        else:
            reranker = BundleReranker(*given, session=session(bundle.folder))
            scores = CrossEncoder(modules=[reranker], device="cpu").predict(asked)
            found = [{"score": float(one)} for one in scores]
        return [_retrieved(bundle, row, one) for row, one in zip(some, found, strict=True)]

    return together(rows, lambda row: row.adapter, ask)


@refusing
def langchain(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`Embeddings.embed_documents` and `BaseDocumentCompressor.compress_documents` of LangChain."""
    from langchain_core.documents import Document as Passage

    from adapter_export.plugins.integrations.langchain import BundleEmbeddings, BundleReranker

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        given = ae.open_bundle(bundle.folder, verify=False), some[0].adapter
        if isinstance(some[0].asked, str):
            embeddings = BundleEmbeddings(*given, session=session(bundle.folder))
            found: list[Document] = [
                {"vector": one} for one in embeddings.embed_documents([str(row.asked) for row in some])
            ]
        else:
            reranker = BundleReranker(*given, session=session(bundle.folder))
            pairs = [(Passage(row.asked[1]), str(row.asked[0])) for row in some]
            ranked = [reranker.compress_documents([passage], query) for passage, query in pairs]
            found = [{"score": one.metadata["relevance_score"]} for (one,) in ranked]
        return [_retrieved(bundle, row, one) for row, one in zip(some, found, strict=True)]

    return together(rows, lambda row: row.adapter, ask)


@refusing
def llama_index(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`BaseEmbedding.get_text_embedding_batch` of LlamaIndex."""
    from adapter_export.plugins.integrations.llama_index import BundleEmbedding

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        model = BundleEmbedding(ae.open_bundle(bundle.folder, verify=False), some[0].adapter)
        found = model.get_text_embedding_batch([str(row.asked) for row in some])
        return [_retrieved(bundle, row, {"vector": one}) for row, one in zip(some, found, strict=True)]

    return together(rows, lambda row: row.adapter, ask)


@refusing
def mlflow(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """`BundleModel.predict`, which `mlflow.pyfunc` calls; its table has the columns of all rows."""
    from adapter_export.plugins.integrations.mlflow import BundleModel

    model = BundleModel(ae.open_bundle(bundle.folder, verify=False))

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        columns = ("text", "pair") if isinstance(some[0].asked, tuple) else ("text",)
        if isinstance(some[0].asked, list):
            table = [{"text": row.asked[0][0], "choices": [choice for _, choice in row.asked]} for row in some]
        else:
            texts = ((row.asked,) if isinstance(row.asked, str) else row.asked for row in some)
            table = [dict(zip(columns, one, strict=True)) for one in texts]
        answers = model.predict(table, {"adapter": some[0].adapter or "base", "strength": some[0].strength})
        return [
            {key: value for key, value in one.items() if not (isinstance(value, float) and np.isnan(value))}
            for one in answers.to_dict("records")
        ]

    return together(rows, lambda row: (shape(row), row.adapter, row.strength), ask)


def without_weights(bundle: Bundle, row: Row) -> bool:
    """Rows that an adapter answers with its own weights."""
    return answers(bundle, row) and row.weights is None


PYTHON = (
    EntryPoint("Session.run_many", run_many, "arrays"),
    EntryPoint("Session.answer, padded", session_answer, "arrays", answers),
    EntryPoint("texts().answer", texts_answer, "text", answers),
    EntryPoint("Answerer", answerer),
    EntryPoint("Answerer, OpenVINO", openvino, same_kernels=False),
    EntryPoint("Answerer, arrays", answerer_arrays, "arrays"),
    EntryPoint("run --text", run_texts),
    EntryPoint("run --data", run_data),
    EntryPoint("run --many", run_data_many),
    EntryPoint("run --arrays, padded", run_arrays, "arrays"),
    EntryPoint("run --shards", shards),
    EntryPoint("sentence-transformers", sentence_transformers, "text", retrieves),
    EntryPoint("LangChain", langchain, "text", retrieves),
    EntryPoint("LlamaIndex", llama_index, "text", embeds),
    EntryPoint("MLflow", mlflow, "text", without_weights),
)
