"""Adapters made of tensors, of files and of each other; the kinds, and the tasks of heads."""
