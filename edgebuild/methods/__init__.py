"""One compression method a file: which choices it offers at which site."""
