"""A value where the function should be."""

workload = 4
