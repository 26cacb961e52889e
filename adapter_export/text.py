"""Text becomes token arrays."""
