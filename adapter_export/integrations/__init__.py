"""Bundles as components of other libraries: a module for each library, which imports it."""
