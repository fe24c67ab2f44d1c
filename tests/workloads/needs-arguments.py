"""A function that cannot be called without an argument."""


def workload(folder: str, size: int = 3) -> None:
    """Never called."""
