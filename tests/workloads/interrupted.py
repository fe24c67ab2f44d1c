"""The user presses Ctrl-C while the file is loaded."""

raise KeyboardInterrupt
