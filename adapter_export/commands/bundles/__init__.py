"""Commands that make, verify and use bundles."""

ORDER = ("build", "add", "remove", "check", "verify", "sign", "evaluate", "compare", "run", "inspect")
