"""Commands that train, and those that help to."""
