"""One file format a file: a network with a precision per layer becomes the format's own kernels."""
