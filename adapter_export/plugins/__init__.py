"""Plug-ins of this distribution: each folder is one, and its package defines it as `PLUGIN`."""
