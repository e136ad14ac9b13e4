"""One file on its way back: written beside its place with everything it needs, ready to get its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from cas.model import Node
from cas.target import posix
from cas.target.attributes import Attributes, Ids, put_times
from cas.target.posix import Spot
from cas.tasks.restore_data import OpenBlock, Run, write_runs

ReadBack = Callable[[int, Node], None]
"""Compares an open file with what its node says; raises Damaged where they differ."""


def write_data(
    attributes: Attributes,
    spot: Spot,
    name: bytes,
    node: Node,
    ids: Ids,
    runs: Iterable[Run],
    block: OpenBlock,
    read_back: ReadBack | None = None,
) -> bytes:
    """Write a file that lies in few blocks; returns its temporary name. `name` is for messages.

    Raises OSError and as the blocks do, and leaves nothing behind then.
    """
    # A damaged block is met before anything is written.
    data = None
    if isinstance(runs, Sequence) and len(runs) == 1 and runs[0][4] == node.size:
        _, pack, number, start, length = runs[0]
        data = block(pack, number)[start : start + length]
    fd, temporary, settled = posix.create_file(attributes, spot, node, ids, readable=read_back is not None)
    try:
        try:
            if data is not None:
                written = os.write(fd, data)
                while written < len(data):
                    written += os.write(fd, data[written:])
            elif node.size:
                if node.extra is not None and node.extra.extents is not None:
                    os.ftruncate(fd, node.size)
                write_runs(block, fd, runs)
            complete(attributes, spot, name, node, ids, fd, settled=settled, read_back=read_back)
        finally:
            os.close(fd)
    except BaseException:
        posix.discard(spot, temporary)
        raise
    return temporary


def complete(
    attributes: Attributes,
    spot: Spot,
    name: bytes,
    node: Node,
    ids: Ids,
    fd: int,
    *,
    settled: bool,
    read_back: ReadBack | None,
) -> None:
    """Everything a written file still needs before it gets its name. Raises OSError, and as `read_back` does."""
    if read_back is not None:
        read_back(fd, node)
    if not settled:
        posix.settle_file(attributes, spot, name, node, ids, fd)
    put_times(fd, node)
