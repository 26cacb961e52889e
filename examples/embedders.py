"""Two models of sentence-transformers in bundles: SPLADE's sparse vectors, and ColBERT's vector of each token.

    pip install sentence-transformers
    python examples/embedders.py SPLADE_FOLDER COLBERT_FOLDER

Each bundle answers a query and documents. The scores are those of the library: dot products, and MaxSim.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import adapter_export as ae
from adapter_export.graph.tasks.answers import Answer
from adapter_export.text import SidedText, TextSide

QUERY = "good film"
DOCUMENTS = ["a very good, fine film.", "this play was dull and bad!"]


def scores(model: Path, folder: Path) -> list[float]:
    """Capture a model, build a bundle of it, and compare the query with the documents."""
    base = ae.capture(model, folder / "model.pt")
    bundle = ae.build(base, [], folder / "bundle")
    reader = bundle.texts()
    task = reader.session.answering()

    def answers(texts: list[str], side: TextSide) -> list[Answer]:
        asked = [SidedText(text, side) if task.has_sides else text for text in texts]
        return [text_answer.answer for text_answer in reader.answer(asked)]

    (query,) = answers([QUERY], "query")
    return [task.kind.similarity(query, document) for document in answers(DOCUMENTS, "document")]


def main() -> None:
    """Print the scores of each model."""
    for model in map(Path, sys.argv[1:]):
        with TemporaryDirectory() as folder:
            for document, score in zip(DOCUMENTS, scores(model, Path(folder)), strict=True):
                print(f"{model.name}  {score:8.3f}  {document}")


if __name__ == "__main__":
    main()
