"""The function is misspelled."""


def worload() -> None:
    """Never called."""
