"""Analysis before and after training: costs, sweeps, mistakes, evaluation, comparison, latency."""
