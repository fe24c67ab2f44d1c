"""A return outside of a function."""

return 1  # noqa: F706
