"""edgebuild builds a trained PyTorch model for a named device and proves that it fits."""
