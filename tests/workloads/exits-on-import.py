"""A script that ends Python."""

import sys

sys.exit(3)
