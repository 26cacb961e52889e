"""Bundles and adapters on the Hugging Face Hub and in OCI registries; needs the extra `hub`."""

from adapter_export.hub.fetch import fetch

__all__ = ["fetch"]
