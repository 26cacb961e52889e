"""Bundles as the objects of other libraries: LangChain, LlamaIndex, MLflow and sentence-transformers."""

from adapter_export.plugin import Plugin

PLUGIN = Plugin("integrations")
