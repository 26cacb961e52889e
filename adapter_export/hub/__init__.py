"""Bundles, adapters, models and tables on the Hugging Face Hub and in OCI registries; needs the extra `hub`."""
