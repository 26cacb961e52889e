"""Error budgets, float64 evaluation, sample inputs, and what can run a base with an adapter."""
