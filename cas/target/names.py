"""Names that a restore makes up: of files not yet whole, and of copies beside what is there."""

from __future__ import annotations

import itertools
import os
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

_RUN: Final = secrets.token_hex(4)
_numbers: Final = itertools.count()
_TEMPORARY: Final = re.compile(rb"\.backdrive-(\d{1,10})-([0-9a-f]{8})-[0-9a-f]{1,16}")


def temporary_name() -> bytes:
    """A name for a file that is not whole yet. It tells the process, and so leftovers from work going on."""
    return b".backdrive-%d-%s-%x" % (os.getpid(), _RUN.encode(), next(_numbers))


def is_leftover(name: bytes) -> bool:
    """Whether the name is one of `temporary_name` in a process that no longer runs."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return False
    process = int(match[1])
    if process == os.getpid():
        return match[2] != _RUN.encode()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


_NAME_BYTES: Final = 255  # the longest name of nearly every file system


def copy_name(name: bytes, taken: int, utc_offset: int, number: int) -> bytes:
    """`YYYY-MM-DD HH-MM Copy of NAME`, from the second on `... Copy (2) of NAME`.

    `taken` is when the point was taken, in ns; `utc_offset` in seconds.
    """
    local = datetime.fromtimestamp(taken // 1_000_000_000, UTC) + timedelta(seconds=utc_offset)
    which = b"Copy" if number == 1 else b"Copy (%d)" % number
    prefix = local.strftime("%Y-%m-%d %H-%M ").encode() + which + b" of "
    return prefix + _shortened(name, _NAME_BYTES - len(prefix))


def _shortened(name: bytes, most: int) -> bytes:
    """A name cut in its middle to so many bytes; its suffix stays, and no UTF-8 character is cut in two."""
    if len(name) <= most:
        return name
    stem, dot, suffix = name.rpartition(b".")
    if not stem or len(suffix) > most // 2:
        stem, dot, suffix = name, b"", b""
    kept = stem[: most - len(dot) - len(suffix)]
    while kept and len(kept) < len(stem) and stem[len(kept)] & 0xC0 == 0x80:
        kept = kept[:-1]
    return kept + dot + suffix
