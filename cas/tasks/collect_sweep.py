"""The second phase of a collect: the index forgets packs, then they are deleted. Small index segments are merged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cas.errors import Damaged, FormatTooNew, ObjectMissing
from cas.ids import PackId
from cas.repository import Repository, list_packs
from cas.store import formats
from cas.store.formats import ObjectKind, PackKind, PackRecord

SEGMENT_CHUNKS: Final = 200_000  # of a merged segment, about
_SMALL_CHUNKS: Final = 50_000
_SMALL_MOST: Final = 8  # small segments that are left as they are


def merge_segments(repository: Repository, dead: set[bytes], working: set[str], unnamed: bool) -> tuple[int, int]:
    """Write the segments anew that name packs which are `dead`, gone or named twice, and small ones where there are
    many.

    Segments of the sessions `working` stay, so that it can be told whose packs they name. `unnamed` tells that the
    vault may hold packs that only a damaged segment names: then a damaged segment stays too. Returns how many segments
    there were and are. Raises the vault's errors.

    The new ones are in the vault before the first old one goes, so that every pack that stays is always named.
    """
    layout = repository.layout
    names = sorted(entry.name for entry in repository.vault.list(layout.index))
    present: set[bytes] = {pack for _, pack, _ in list_packs(repository)}
    old: set[str] = set()
    small: set[str] = set()
    first: dict[bytes, str] = {}  # the segment that names a pack; two do where a merge was interrupted, or two met
    for name in names:
        if layout.session_of(name) in working:
            continue
        try:
            records = repository.segment(name)
        except ObjectMissing:
            continue
        except (Damaged, FormatTooNew) as error:
            if isinstance(error, Damaged) and not unnamed:
                old.add(name)
            continue
        ids = {record.id for record in records}
        twice = {first.setdefault(pack, name) for pack in ids} - {name}
        if ids & dead or not ids <= present or twice:
            old |= {name, *twice}
        elif _chunks(records) < _SMALL_CHUNKS:
            small.add(name)
    if len(small) > _SMALL_MOST or (old and len(small) > 1):
        old |= small
    # All that a segment names and that stays is in a new one before it goes, whatever else names it: another collect
    # may be about to remove that.
    made = _write_merged(repository, sorted(old), present - dead)
    for name in sorted(old):
        repository.vault.delete(name)
    return len(names), len(names) - len(old) + made


def _write_merged(repository: Repository, names: list[str], keep: set[bytes]) -> int:
    seen: set[bytes] = set()
    batch: list[PackRecord] = []
    chunks = made = 0
    for name in names:
        try:
            records = repository.segment(name)
        except (Damaged, ObjectMissing):
            continue
        for record in records:
            if record.id not in keep or record.id in seen:
                continue
            seen.add(record.id)
            batch.append(record)
            chunks += sum(len(block.lengths) for block in record.blocks)
            if chunks >= SEGMENT_CHUNKS:
                _write_segment(repository, batch)
                made += 1
                batch, chunks = [], 0
    if batch:
        _write_segment(repository, batch)
        made += 1
    return made


def _write_segment(repository: Repository, records: list[PackRecord]) -> None:
    name = repository.layout.segment()
    repository.put_object(ObjectKind.INDEX, name, formats.encode(records))


def _chunks(records: Iterable[PackRecord]) -> int:
    return sum(len(block.lengths) for record in records for block in record.blocks)


def delete_packs(
    repository: Repository, packs: Iterable[tuple[PackKind, PackId]], sizes: dict[bytes, int]
) -> tuple[int, int]:
    """Delete packs that no segment names. Returns how many were there, and their bytes. Raises the vault's errors."""
    count = freed = 0
    for kind, pack in packs:
        repository.vault.delete(repository.layout.pack(kind, pack))
        if pack in sizes:
            count += 1
            freed += sizes[pack]
    return count, freed
