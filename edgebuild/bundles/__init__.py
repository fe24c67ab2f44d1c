"""Bundles: written whole, checked, and read again."""
