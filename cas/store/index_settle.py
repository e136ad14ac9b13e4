"""How the index follows a collect: chunks that have several places, condemned packs, packs that are gone.

A chunk's row in `chunks` names one place of it. Its other places are in `others`, under the chunk id and the number of
the pack. When a pack is condemned or gone, the rows that lead to it are led to another place, in the same transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import lmdb

from cas.ids import PACK_ID_BYTES

RETIRED: Final = 0x80  # in the kind of a pack that is gone: whoever looked up its number just before may still ask
_KIND_AT: Final = PACK_ID_BYTES
_CONDEMNED: Final = b"condemned "


class State(NamedTuple):
    """The tables, in a write transaction."""

    txn: lmdb.Transaction
    chunks: lmdb._Database
    others: lmdb._Database
    packs: lmdb._Database
    blocks: lmdb._Database
    about: lmdb._Database


def condemned_in(txn: lmdb.Transaction, about: lmdb._Database) -> set[bytes]:
    """The ids of condemned packs."""
    found = set()
    with txn.cursor(db=about) as cursor:
        if cursor.set_range(_CONDEMNED):
            for key in map(bytes, cursor.iternext(values=False)):
                if not key.startswith(_CONDEMNED):
                    break
                found.add(key[len(_CONDEMNED) :])
    return found


def _other_key(chunk: bytes, row: bytes) -> bytes:
    return chunk + row[3::-1]  # rows start with the pack's number in little endian


def _others(state: State, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The further places of a chunk: (key, row)."""
    with state.txn.cursor(db=state.others) as cursor:
        if cursor.set_range(chunk):
            for key, row in cursor:
                if bytes(key[: len(chunk)]) != chunk:
                    return
                yield bytes(key), bytes(row)


def keep_others(state: State, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Of chunks that were just put without overwriting, keep the places that are not in `chunks`.

    A place in a condemned pack makes room for one that is not in one.
    """
    bad = _numbers(state, condemned_in(state.txn, state.about))
    for chunk, row in rows:
        present = bytes(state.txn.get(chunk, b"", db=state.chunks))
        if present[:4] == row[:4]:
            continue
        if present[:4] in bad and row[:4] not in bad:
            state.txn.put(chunk, row, db=state.chunks)
            present, row = row, present
        state.txn.put(_other_key(chunk, row), row, db=state.others)


def _numbers(state: State, packs: Iterable[bytes]) -> set[bytes]:
    """The numbers of packs as they start rows."""
    found = (state.txn.get(b"pack " + pack, db=state.about) for pack in packs)
    return {bytes(number)[::-1] for number in found if number is not None}


def settle(state: State, condemned: set[bytes], keep: set[bytes] | None) -> None:
    """As `Index.settle`, without the segments."""
    before = condemned_in(state.txn, state.about)
    gone = set() if keep is None else _retire(state, keep)
    bad = _numbers(state, condemned)
    _repoint(state, gone | _numbers(state, condemned - before), gone, bad)
    for pack in before - condemned:
        state.txn.delete(_CONDEMNED + pack, db=state.about)
    for pack in condemned - before:
        state.txn.put(_CONDEMNED + pack, b"", db=state.about)


def _retire(state: State, keep: set[bytes]) -> set[bytes]:
    """Mark the packs that are not in `keep`; those marked before are removed. Returns the numbers of the former."""
    retired: list[tuple[bytes, bytes]] = []
    gone: list[tuple[bytes, bytes]] = []
    with state.txn.cursor(db=state.packs) as cursor:
        for key, row in cursor:
            if row[_KIND_AT] & RETIRED:
                gone.append((bytes(key), bytes(row)))
            elif bytes(row[:PACK_ID_BYTES]) not in keep:
                retired.append((bytes(key), bytes(row)))
    for key, row in gone:
        state.txn.delete(key, db=state.packs)
        state.txn.delete(b"pack " + row[:PACK_ID_BYTES], db=state.about)
        number = 0
        while state.txn.delete(key + struct.pack(">H", number), db=state.blocks):
            number += 1
    for key, row in retired:
        marked = row[:_KIND_AT] + bytes([row[_KIND_AT] | RETIRED]) + row[_KIND_AT + 1 :]
        state.txn.put(key, marked, db=state.packs)
    return {key[::-1] for key, _ in retired}


def _repoint(state: State, leave: set[bytes], gone: set[bytes], bad: set[bytes]) -> None:
    """Lead the rows that lead to packs of `leave` elsewhere; those that lead to `gone` packs go where there is no other
    place. `bad` packs are taken only where nothing else is left."""
    if not leave:
        return
    rows: list[tuple[bytes, bytes]] = []
    with state.txn.cursor(db=state.chunks) as cursor:
        for chunk, row in cursor:
            if row[:4] in leave:
                rows.append((bytes(chunk), bytes(row)))
    for chunk, row in rows:
        places = [place for place in _others(state, chunk) if place[1][:4] not in gone]
        best = next((place for place in places if place[1][:4] not in bad), None)
        lost = row[:4] in gone
        if best is None and lost and places:
            best = places[0]
        if best is not None:
            state.txn.put(chunk, best[1], db=state.chunks)
            state.txn.delete(best[0], db=state.others)
            if not lost:
                state.txn.put(_other_key(chunk, row), row, db=state.others)
        elif lost:
            state.txn.delete(chunk, db=state.chunks)
    if gone:
        with state.txn.cursor(db=state.others) as cursor:
            stale = [bytes(key) for key, row in cursor if bytes(row[:4]) in gone]
        for key in stale:
            state.txn.delete(key, db=state.others)
