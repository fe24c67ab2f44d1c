"""Imports a neighbor that is not Python."""

from importlib import import_module

import_module("syntax-error")
