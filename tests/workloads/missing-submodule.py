"""Imports a module that an installed package does not have."""

import json.no_such_module  # noqa: F401
