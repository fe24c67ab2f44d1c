"""A workload that imports a module from its own folder, also while it is called."""

from sibling_of_valid import tiny

from edgebuild.vocabulary.workload import Workload


def workload() -> Workload:
    from sibling_of_valid import tiny as again

    assert again is tiny
    return tiny()
