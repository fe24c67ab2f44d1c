"""Misspells the module beside it."""

import sibling_of_vaild  # noqa: F401
