"""Commands that train, and those that prepare and improve training."""

ORDER = ("plan", "train", "sweep", "lint", "drop", "distil")
