"""Search with one bundle in three libraries: sentence-transformers, LangChain and LlamaIndex.

    pip install sentence-transformers langchain-core llama-index-core
    python examples/retrieval.py all-MiniLM-L6-v2

The argument is the folder of an embedder. The bundle adds an adapter that embeds sentences by their tone. Each library
searches by meaning with the embedder's own vectors, and by tone with the adapter's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from sentence_transformers import SentenceTransformer

import adapter_export as ae
from adapter_export.plugins.integrations.langchain import BundleEmbeddings
from adapter_export.plugins.integrations.llama_index import BundleEmbedding
from adapter_export.plugins.integrations.sentence_transformers import BundleEmbedder

THINGS = ("soup", "opera", "comet", "hotel", "train", "garden", "novel", "bread", "bridge", "lecture", "coat", "beach")
TONES = {
    "praise": ("the {} was wonderful, I loved it", "what a fine {}, thank you"),
    "complaint": ("the {} was dreadful, I want my money back", "never again this {}, what a shame"),
}
TEXTS = {tone: [one.format(thing) for thing in THINGS for one in patterns] for tone, patterns in TONES.items()}
DOCUMENTS = ["the soup was dreadful, I want my money back", "the comet was wonderful, I loved it"]
QUERY = "what a fine soup, thank you"


def make_bundle(model: Path, folder: Path) -> Path:
    """Train the adapter, and build a bundle of it and of the embedder."""
    rows = [f"{text}\t{tone}" for tone, texts in TEXTS.items() for text in texts]
    (folder / "tones.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    base = ae.open_base(model)
    options = {
        "l2_normalise": True,
        "epochs": 10,
        "patience": 10,
        "learning_rate": 1e-2,
        "bottleneck": 8,
        "batch_size": 24,
        "validation": 0.5,
    }
    tone = ae.train(base, folder / "tones.tsv", name="tone", task="embedding", **options)
    ae.build(base, [tone], folder / "bundle")
    return folder / "bundle"


def searched(bundle: Path, adapter: str) -> dict[str, str]:
    """Return the document that each library finds."""
    module = BundleEmbedder(bundle, adapter)
    model = SentenceTransformer(modules=[module], device="cpu")
    scores = model.similarity(model.encode_query(QUERY), model.encode_document(DOCUMENTS))
    store = InMemoryVectorStore.from_texts(DOCUMENTS, BundleEmbeddings(bundle, adapter))
    index = VectorStoreIndex([TextNode(text=text) for text in DOCUMENTS], embed_model=BundleEmbedding(bundle, adapter))
    return {
        "sentence-transformers": DOCUMENTS[int(scores.argmax())],
        "LangChain": store.similarity_search(QUERY, k=1)[0].page_content,
        "LlamaIndex": index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].text,
    }


def main(model: Path) -> None:
    with TemporaryDirectory() as folder:
        bundle = make_bundle(model, Path(folder))
        for adapter in ("base-head", "tone"):
            print(f"{adapter}: {QUERY!r} finds")
            for library, found in searched(bundle, adapter).items():
                print(f"  {library:22} {found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
