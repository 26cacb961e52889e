"""Bundles as the objects of other libraries: LangChain, LlamaIndex and sentence-transformers."""

from adapter_export.plugin import Plugin

PLUGIN = Plugin("integrations")
