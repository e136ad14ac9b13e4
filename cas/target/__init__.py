"""Where files go to: writing nodes and their attributes into a file system without ever leaving it."""
