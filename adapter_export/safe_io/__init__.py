"""The one way in for bytes of others: files are opened, parsers are called, and libraries are tried out here."""
