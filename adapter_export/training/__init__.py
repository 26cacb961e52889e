"""Training jobs: rows, heads, learners and loops."""
