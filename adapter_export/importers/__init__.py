"""Adapters that other software wrote, and plain tensors, become adapters."""
