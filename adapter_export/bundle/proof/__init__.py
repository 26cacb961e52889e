"""Prove a bundle: against a reference, against golden vectors, and by invariants."""
