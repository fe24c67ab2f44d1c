"""One transport a file: a machine that runs commands."""
