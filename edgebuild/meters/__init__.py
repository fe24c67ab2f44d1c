"""What reads power, one sensor a file; found by file name."""
