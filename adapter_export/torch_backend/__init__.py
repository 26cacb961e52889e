"""PyTorch backend: bases as archives, adapters as modules at sites, training."""
