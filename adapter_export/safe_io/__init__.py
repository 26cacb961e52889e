"""Input and output of files: opening untrusted files, calling parsers, sandboxing libraries, writing atomically."""
