"""Says itself how to install what it needs."""


def workload() -> None:
    raise ModuleNotFoundError("this workload needs x; install it: pip install 'x[all]'")
