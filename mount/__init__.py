"""A recovery point, or all of them, as a read-only drive."""
