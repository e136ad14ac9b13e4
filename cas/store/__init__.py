"""The store: bytes in, sealed objects out, and back. `writer` and `reader` wire the peers; nobody else does."""
