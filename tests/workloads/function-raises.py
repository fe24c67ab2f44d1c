"""A function that fails below its own first line."""


def workload() -> None:
    read({})


def read(settings: dict[str, int]) -> int:
    return settings["size"]
