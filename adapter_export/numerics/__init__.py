"""Error budgets, float64 evaluation, sample inputs, and runners of a base with an adapter."""
