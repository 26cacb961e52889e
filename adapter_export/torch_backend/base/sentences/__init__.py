"""Folders of sentence-transformers: embeddings of texts and tokens, sparse embeddings, and rerankers."""
