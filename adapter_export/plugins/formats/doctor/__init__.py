"""Diagnosis of adapters of other libraries: effect, strength, ignored tensors, and causes of failures.

It asks the importers, which decide whether an adapter fits, and examines the files again only to name a cause.
"""
