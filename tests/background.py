"""For tests that interrupt what they start, also when they run in the background."""

from __future__ import annotations

import signal


def heeding_interrupts() -> None:
    """What runs in the background, such as a suite of tests, passes on that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
