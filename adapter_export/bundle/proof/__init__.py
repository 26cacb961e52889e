"""Prove a bundle: against a reference, against golden vectors, against what must hold in any case."""
