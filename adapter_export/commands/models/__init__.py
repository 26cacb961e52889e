"""Commands on base models."""

ORDER = ("capture", "sites")
