"""The Python API: one call for each command, loaded when it is first used."""
