"""Documents in, rows of tokens out."""
