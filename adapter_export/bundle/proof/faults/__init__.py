"""Faults that a check must find: their kinds, how to plant them in a copy of a bundle, and the self-test."""
