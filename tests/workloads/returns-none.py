"""A function that forgets to return."""


def workload() -> None:
    """Makes nothing."""
