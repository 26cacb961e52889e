"""Tables of text: how files become rows, and what is wrong with a table, all of it in one error."""
