"""One runtime a file: which kernels an artifact really ran on."""
