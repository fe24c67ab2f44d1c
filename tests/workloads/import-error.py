"""Imports a name that its module does not have."""

from math import tau_squared  # noqa: F401
