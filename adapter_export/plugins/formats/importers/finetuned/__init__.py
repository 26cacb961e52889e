"""Adapters from fine-tuned checkpoints: the differences of their weights from those of a base."""
