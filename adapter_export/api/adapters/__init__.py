"""Load, combine, import and export adapters; their kinds, and the tasks of their heads."""
