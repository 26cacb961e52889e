"""Commands that train, and those that prepare and improve training."""
