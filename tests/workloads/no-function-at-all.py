"""A file without any function."""

SIZE = 4
