"""Fails while it is imported."""

SIZE = int("four")
