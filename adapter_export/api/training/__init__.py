"""Training, and what is known before it and after it."""
