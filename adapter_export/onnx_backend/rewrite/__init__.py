"""Rewrite a copy of a base: insert slots, banks and outputs for inner values."""
