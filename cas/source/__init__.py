"""Where files come from: reading entries with all that the platform knows of them."""
