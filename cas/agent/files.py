"""Small files of the machine's own, written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cas.errors import CacheUnusable, NoSpace

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn OSError on the machine's own files into NoSpace or CacheUnusable, which name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("machine's own records", str(path)) from None
        raise CacheUnusable(
            f"{path}, where backdrive keeps its own files, cannot be used: {error.strerror or error}.",
            "Check its permissions, or set BACKDRIVE_HOME to another directory.",
        ) from None


def make_directory(path: Path) -> None:
    """Make the directory, and its parents, for this user alone. Raises NoSpace, CacheUnusable."""
    with translated(path):
        missing = [path, *path.parents]
        for directory in reversed(missing[: next(i for i, known in enumerate(missing) if known.is_dir())]):
            directory.mkdir(mode=0o700, exist_ok=True)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file durably: after a crash it holds the old content or the new. Raises NoSpace, CacheUnusable."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with translated(path):
        try:
            # Made anew with its final mode: a secret is never readable by others, not even for a moment.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":
        return  # a directory cannot be opened there; NTFS journals the rename
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
