"""Tables of text: readers of files, and all faults of a table in one error."""
