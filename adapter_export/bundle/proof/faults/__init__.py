"""Faults that a check must find: kinds, how each is planted in a copy of a bundle, and the self-test."""
