"""What an object may be called: one rule for every implementation, so that any vault can be copied to any other."""

from __future__ import annotations

import re

from cas.errors import InvalidRequest

HEADER = "vault.json"
FOLDER = "repositories"  # which every other object lies in
"""The object that makes a place a vault. Where it is gone, so is the vault: a mount point without its disk has none."""

TEMPORARY = "tmp"
"""The first part that no name may have, in any case: a directory vault keeps what it is still writing there."""

MAX_NAME = 1024
"""Characters in a whole name: Azure's limit. A part has at most 255, the limit of file systems."""

_PART = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}")


def is_name(name: str) -> bool:
    """Whether an object may be called `name`."""
    parts = name.split("/")
    return len(name) <= MAX_NAME and parts[0].lower() != TEMPORARY and all(map(_PART.fullmatch, parts))


def check_name(name: str) -> None:
    """Raise InvalidRequest unless an object may be called `name`."""
    if not is_name(name):
        raise InvalidRequest(f"{name!r} is not a name that an object in a vault may have.")


def check_prefix(prefix: str) -> None:
    """Raise InvalidRequest unless `prefix` is empty, or a name and a slash."""
    if prefix and not (prefix.endswith("/") and is_name(prefix[:-1])):
        raise InvalidRequest(f"{prefix!r} is not a prefix that objects in a vault may have.")


def check_range(offset: int, length: int | None) -> None:
    """Raise ValueError for a negative offset or length in bytes: a caller's mistake, never a foreseeable fault."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"a negative range was asked for: offset {offset}, length {length}")
