"""Language models too big for memory: planned by arithmetic, converted as a stream."""
