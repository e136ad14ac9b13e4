"""Check: is everything there, does it open, is it what was written; and if not, which points and files it touches.

Structure is always checked: headers, key slots, machines, index segments, points, every tree and the place of every
chunk. A part of the packs, or all of them, is opened whole. Nothing is changed but this machine's index, which is
brought up to date. Damage never ends a check; a vault that cannot be reached does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, TypeVar

from cas.errors import (
    Damaged,
    FormatTooNew,
    InvalidRequest,
    ObjectMissing,
    VaultUnavailable,
    WrongPassphrase,
)
from cas.events import Listener, Progress, Stage, ignore
from cas.ids import CHUNK_ID_BYTES, ChunkId, PackId, PointId
from cas.model import Point
from cas.repository import Repository, check_vault, pack_of_name
from cas.store import formats
from cas.store.formats import ObjectKind, PackKind, PackRecord
from cas.store.index import PackInfo
from cas.store.layout import VAULT_HEADER
from cas.store.lifecycle import BACKUP, Session
from cas.tasks.deleted import deletions, is_there, purged_ids, read_deleted
from cas.tasks.findings import LOST_PACK, CheckReport, Faults, Kind, Problem, reason_of
from cas.tasks.reach import Blame, Chunks, Stray, Walk
from cas.tasks.scrub import PackFindings, scrub

_REBUILD: Final = "Run 'backdrive cache rebuild'."
_MOST_REASONS: Final = 4  # of one pack

T = TypeVar("T")

__all__ = ["CheckReport", "Problem", "check"]


def check(
    repository: Repository,
    read_percent: float = 0,
    listen: Listener = ignore,
    *,
    choose: random.Random | None = None,
) -> CheckReport:
    """Check the structure, and open `read_percent` of the packs whole, which `choose` picks.

    Raises InvalidRequest for a percentage that is none, and the vault's and the cache's errors where the vault or the
    cache as a whole cannot be used.
    """
    if not 0 <= read_percent <= 100:
        raise InvalidRequest(f"{read_percent} is not a percentage.", "Give a number from 0 to 100.")
    run = _Check(repository, listen)
    run.objects()
    with Chunks(repository, run.report, run.faults, run.strays()) as chunks:
        run.walk(chunks)
        run.read(chunks, read_percent, choose or random.Random())
        run.blame(chunks)
        run.note_strays(chunks)
    listen(Stage("done"))
    return run.report


class _Check:
    """One run. The order in which things are listed matters: points, then segments, then packs, the reverse of how a
    backup writes them, so that a backup under way looks like no damage."""

    def __init__(self, repository: Repository, listen: Listener) -> None:
        self.report = CheckReport()
        self.faults = Faults()
        self._repository = repository
        self._listen = listen
        self._progress = Progress()
        self._points: list[Point] = []
        self._deleted: list[Point] = []
        self._in_vault: dict[PackId, tuple[PackKind, int]] = {}
        self._in_segments: set[PackId] = set()
        self._in_index: dict[PackId, tuple[int, PackInfo]] = {}
        self._absent: list[Problem] = []
        self._suspects: dict[PackId, str] = {}  # whatever is chosen, these packs are opened

    def objects(self) -> None:
        """Everything but the packs' contents."""
        repository = self._repository
        self._listen(Stage("preparing"))
        self._try("header", VAULT_HEADER, lambda: check_vault(repository.vault))
        self._try("header", repository.layout.header, repository.read_header)
        self._key_slots()
        points = self._read_points()
        segments = sorted(entry.name for entry in repository.vault.list(repository.layout.index))
        repository.refresh()  # what it cannot load, the reading of each segment below meets again
        self._list_packs()
        self._in_index = {info.id: (number, info) for number, info in repository.index.packs()}
        for name in segments:
            records = self._try("index", name, lambda name=name: repository.segment(name), _REBUILD)  # type: ignore[misc]
            for record in records or ():
                self._named(record)
        for pack, (number, info) in self._in_index.items():
            if pack not in self._in_segments and pack not in self._in_vault:
                self.faults.packs[number] = self._missing_pack(repository.layout.pack(info.kind, pack))
        self.report.chunks = repository.index.chunk_count()
        self.report.packs = len(self._in_index)
        self._machines()
        self._sessions(points)

    def _try(self, kind: Kind, name: str, call: Callable[[], T], advice: str = "") -> T | None:
        """What `call` gives, or None with the problem noted."""
        try:
            return call()
        except (Damaged, FormatTooNew, ObjectMissing, WrongPassphrase) as error:
            reason = "it is missing" if isinstance(error, ObjectMissing) else reason_of(error)
        except VaultUnavailable as error:
            self._repository.vault.size(VAULT_HEADER)  # where the whole vault is out of reach, that is to be said
            reason = reason_of(error)
        self.report.add(kind, name, reason, advice)
        return None

    # --- small objects ---

    def _key_slots(self) -> None:
        layout = self._repository.layout
        slots = self._repository.slots.all()
        for slot in slots:
            if slot.error:
                self.report.add("key", layout.keys + slot.id, slot.error, "Add a new one with 'backdrive key add'.")
        if not slots:
            self.report.add(
                "key",
                layout.keys,
                "there is no key slot, so that no passphrase opens the repository",
                "Add one with 'backdrive key add' on a machine that is registered.",
            )

    def _read_points(self) -> set[PointId]:
        """Read every point; returns the ids of all that are there, damaged ones too."""
        repository, prefix = self._repository, self._repository.layout.points
        names, voids = repository.point_entries()
        for name in voids:
            self._try("point", name, lambda name=name: repository.read_void(name))  # type: ignore[misc]
        for name in names:
            before = len(self.report.problems)
            point = self._try("point", name, lambda name=name: repository.read_point(name, cached=False))  # type: ignore[misc]
            if point is not None:
                self._points.append(point)
            else:
                self.report.problems[before].points.append(PointId(name.removeprefix(prefix)))
        self._points.sort(key=lambda point: (point.started, point.id))
        self.report.points = len(self._points)
        deleted = self._read_deleted(set(names))
        meant = purged_ids(repository) | deleted | {PointId(name.removeprefix(prefix)) for name in voids}
        gone: dict[str, str] = {}
        for point in self._points:
            if point.parent is not None:
                gone.setdefault(prefix + point.parent, f"it is missing, and point {point.id} was compared with it")
        for name in repository.index.remembered(prefix):
            if " " not in name:  # else it is a void of before
                gone.setdefault(name, "it is missing, and this machine has seen it")
        for name in gone.keys() - set(names) - {prefix + point for point in meant}:
            self.report.add("point", name, gone[name]).points.append(PointId(name.removeprefix(prefix)))
        return {PointId(name.removeprefix(prefix)) for name in names} | meant

    def _read_deleted(self, alive: set[str]) -> set[PointId]:
        """Read the points that can be taken back: they are walked like the others. Returns the ids of all."""
        repository = self._repository
        found = deletions(repository)
        for point, names in found.items():
            if repository.layout.points + point in alive:
                continue
            known = self._try("point", names[-1], lambda name=names[-1]: read_deleted(repository, name))  # type: ignore[misc]
            if known is not None:
                self._deleted.append(known.point)
            elif is_there(repository, names[-1]):
                self.report.problems[-1].points.append(point)
            else:
                self.report.problems.pop()  # taken back or purged just now
        self.report.deleted = len(self._deleted)
        return set(found)

    def _machines(self) -> None:
        repository = self._repository
        known: set[object] = set()
        damaged = False
        for entry in sorted(repository.vault.list(repository.layout.machines)):
            payload = self._try("machine", entry.name, lambda name=entry.name: self._object(ObjectKind.MACHINE, name))  # type: ignore[misc]
            damaged = damaged or payload is None
            known.add((payload or {}).get("id"))
        lost = {point.machine_id: point.machine for point in self._points if point.machine_id not in known}
        if not damaged:  # or else the damaged object may be the one that is looked for
            for machine, name in sorted(lost.items()):
                self.report.add(
                    "machine",
                    name,
                    f"no object registers the machine {machine}, which has points",
                    "Its next backup registers it again.",
                )

    def _sessions(self, points: set[PointId]) -> None:
        """Sessions are only needed while a backup runs, so that what is wrong with them is no damage."""
        repository = self._repository
        found = set()
        for entry in sorted(repository.vault.list(repository.layout.sessions)):
            try:
                payload = repository.get_object(ObjectKind.SESSION, entry.name)
                if formats.decode(payload, Session, entry.name).kind == BACKUP:
                    found.add(PointId(entry.name.removeprefix(repository.layout.sessions).partition(".")[0]))
            except ObjectMissing:
                continue  # it has ended
            except (Damaged, FormatTooNew) as error:
                self.report.notes.append(f"The session {entry.name} does not open: {reason_of(error)}.")
        open_sessions = sorted(found - points)
        if open_sessions:
            which = ", ".join(session[:8] for session in open_sessions[:5]) + ", ..." * (len(open_sessions) > 5)
            self.report.notes.append(
                f"{len(open_sessions)} backups were begun and left no point ({which}): each is still running or was "
                "stopped."
            )

    def _object(self, kind: ObjectKind, name: str) -> dict[str, object]:
        return formats.decode(self._repository.get_object(kind, name), dict[str, object], name)

    # --- packs ---

    def _list_packs(self) -> None:
        repository = self._repository
        for kind in PackKind:
            for entry in repository.vault.list(repository.layout.packs(kind)):
                try:
                    pack = pack_of_name(entry.name)
                except Damaged:
                    pack = None
                if pack is None or entry.name != repository.layout.pack(kind, pack):
                    self.report.notes.append(f"{entry.name} is no object of backdrive.")
                else:
                    self._in_vault[pack] = (kind, entry.size)

    def _named(self, record: PackRecord) -> None:
        """Compare what a segment says of a pack with the vault and with this machine's index."""
        pack = PackId(record.id)
        if pack in self._in_segments:
            return
        self._in_segments.add(pack)
        name = self._repository.layout.pack(PackKind(record.kind), pack)
        there = self._in_vault.get(pack)
        number, info = self._in_index.get(pack, (-1, None))
        if there is None or there[0] != record.kind:
            problem = self._missing_pack(name)
            if info is not None:
                self.faults.packs[number] = problem
            else:
                self._missing_chunks(record, problem)
            return
        if there[1] != record.size:
            self._suspects[pack] = f"it has {there[1]} bytes, and {record.size} were written"
        if info is None or (info.kind, info.size, info.salt) != (record.kind, record.size, record.salt):
            self.report.add("index", name, "the index of this machine contradicts the index segments", _REBUILD)

    def _missing_pack(self, name: str) -> Problem:
        problem = self.report.add("pack", name, "it is missing", LOST_PACK)
        self._absent.append(problem)
        return problem

    def _missing_chunks(self, record: PackRecord, problem: Problem) -> None:
        """The index has left out a pack that is gone: its chunks are lost unless they are in another one."""
        for block in record.blocks:
            ids = [ChunkId(block.ids[at : at + CHUNK_ID_BYTES]) for at in range(0, len(block.ids), CHUNK_ID_BYTES)]
            for chunk, location in zip(ids, self._repository.index.find_many(ids), strict=True):
                if location is None:
                    self.faults.chunks[chunk] = problem

    def strays(self) -> list[Stray]:
        """Packs that are in the vault and in no segment that can be read."""
        known = self._in_segments | self._in_index.keys() | self._repository.condemned_packs()
        return [(kind, pack, size) for pack, (kind, size) in self._in_vault.items() if pack not in known]

    def note_strays(self, chunks: Chunks) -> None:
        """Tell of those that no point needs: garbage, or what a killed run left, or one that is still running."""
        waiting = self._repository.condemned_packs() & self._in_vault.keys()
        if waiting:
            size = sum(self._in_vault[PackId(pack)][1] for pack in waiting)
            self.report.notes.append(f"{len(waiting)} packs of {size} bytes are condemned: a collect deletes them.")
        idle = [size for _, pack, size in self.strays() if pack not in chunks.needed_strays]
        if idle:
            self.report.notes.append(
                f"{len(idle)} packs of {sum(idle)} bytes are named by no index segment: a backup is still running or "
                "was stopped. The next backup of that machine uses them, or a collect deletes them."
            )

    # --- contents ---

    def walk(self, chunks: Chunks) -> None:
        """Everything that points reach."""
        self._listen(Stage("scanning"))
        walk = Walk(chunks, self.report, self._tell)
        for point in reversed(self._points):  # the newest first: its trees lie close together
            walk.point(point.root)
        for point in reversed(self._deleted):
            walk.point(point.root)
        walk.flush()

    def read(self, chunks: Chunks, percent: float, choose: random.Random) -> None:
        """Open packs whole."""
        there = [(number, info) for pack, (number, info) in self._in_index.items() if pack in self._in_vault]
        count = math.ceil(len(there) * percent / 100)
        chosen = choose.sample(there, count) if count < len(there) else there
        picked = {number for number, _ in chosen}
        chosen = chosen + [entry for entry in there if entry[1].id in self._suspects and entry[0] not in picked]
        if not chosen:
            return
        self._listen(Stage("verifying"))
        self._progress.total_size = sum(info.size for _, info in chosen)
        scrub(self._repository, chosen, lambda found: self._take(chunks, found))

    def _take(self, chunks: Chunks, found: PackFindings) -> None:
        self.report.packs_read += 1
        self.report.read += found.size
        self._tell()
        info = self._repository.index.pack(found.number)
        if info.id in self._suspects:
            found.reasons.insert(0, self._suspects[info.id])
        if not found.reasons:
            return
        more = len(found.reasons) - _MOST_REASONS
        reason = "; ".join(found.reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")
        if not found.missing and not found.blocks and not found.chunks:
            reason += "; every block still opens"
        if found.cache_differs:
            name = self._repository.layout.pack(info.kind, info.id)
            problem = self.report.add("index", name, reason, _REBUILD)
        else:
            problem = chunks.pack_problem(found.number, reason)
        if found.missing:
            self.faults.packs[found.number] = problem
        for block in found.blocks:
            self.faults.blocks[found.number, block] = problem
        for chunk, location in zip(found.chunks, self._repository.index.find_many(found.chunks), strict=True):
            if location is not None and location.pack == found.number:
                self.faults.chunks[chunk] = problem

    def blame(self, chunks: Chunks) -> None:
        """Name the points and files that the damage touches."""
        if self.faults or chunks.needed_strays:
            blame = Blame(chunks)
            for point in (*self._points, *self._deleted):
                blame.point(point.id, point.root)
        for problem in self._absent:
            if not problem.points:
                self.report.problems.remove(problem)
                self.report.notes.append(f"{problem.name} is missing, and no point needs it.")

    def _tell(self) -> None:
        self._progress.files = self.report.files
        self._progress.read = self.report.read
        self._listen(self._progress)
