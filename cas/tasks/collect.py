"""Collect: give back the space of what no point needs any more, while backups, drives and other collects go on.

Two phases. Packs are first condemned: an object in the vault names them, and what is still needed of them has been
written anew. They are deleted by a later round, when nobody who began before can still rely on them. `cas/FORMAT.md`,
section 12, has the protocol, and why each step is safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cas.errors import (
    BackdriveError,
    Damaged,
    FormatTooNew,
    InvalidRequest,
    ObjectDamaged,
    ObjectMissing,
    PackDamaged,
    VaultUnavailable,
)
from cas.events import Listener, Progress, Stage, ignore
from cas.ids import PackId
from cas.repository import Repository, list_packs
from cas.store import formats
from cas.store.formats import ObjectKind, PackKind
from cas.store.layout import new_id
from cas.store.lifecycle import BACKUP, COLLECT, DRIVE, Condemned, join_packs
from cas.store.writer import Writer
from cas.tasks.announce import HOUR, Announcement
from cas.tasks.collect_copy import copy_pack
from cas.tasks.collect_mark import Mark
from cas.tasks.collect_plan import PackUse, Plan, make_plan
from cas.tasks.collect_roots import Census, Known, Roots, purge
from cas.tasks.collect_sweep import delete_packs, merge_segments

MAX_UNUSED: Final = 10.0  # per cent
GRACE: Final = HOUR  # between the phases: nobody needs it, but a reader that knows nothing of collects is spared
_ROUNDS: Final = 3
_ATTEMPTS: Final = 5

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRequest:
    """What is asked of a collect. `grace` is ns between condemning and deleting; sizes are bytes."""

    machine: str
    max_unused: float = MAX_UNUSED
    max_repack: int | None = None
    grace: int = GRACE
    dry_run: bool = False


@dataclass(slots=True)
class Waiting:
    """Packs that are condemned and not deleted yet. `until` is when that can be at the latest, in ns, as far as known:
    the next collect after it deletes them. `why` is for a person."""

    packs: int
    size: int
    until: int
    why: str


@dataclass(slots=True)
class CollectReport:
    """What a collect did, or, dry, would do. Sizes are bytes."""

    points: int = 0
    deleted_points: int = 0  # which can still be taken back
    purged: int = 0  # points whose time was over
    packs: int = 0  # in the vault, at the end
    used: int = 0  # of kept packs
    unused: int = 0  # of kept packs
    condemned: int = 0  # packs
    condemned_size: int = 0
    repacked: int = 0  # packs of those whose needed chunks were written anew
    copied: int = 0  # plain bytes written anew
    deleted: int = 0  # packs
    freed: int = 0
    segments_before: int = 0
    segments: int = 0
    missing: int = 0  # chunks that points need and no pack has
    waiting: list[Waiting] = field(default_factory=list)
    problems: list[BackdriveError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(repository: Repository, request: CollectRequest, clock: Clock, listen: Listener = ignore) -> CollectReport:
    """Collect once; without a grace also what was condemned in the same call.

    Raises Damaged where a point or a tree cannot be read, for then nobody knows what is needed and nothing is deleted;
    InvalidRequest, VaultReadOnly and the vault's and the cache's errors.
    """
    if not 0 <= request.max_unused <= 100:
        raise InvalidRequest(f"{request.max_unused} is not a percentage.", "Give a number from 0 to 100.")
    report = CollectReport()
    attempts = 0
    for _ in range(_ROUNDS):
        before = report.condemned
        while True:
            try:
                _Round(repository, request, clock, listen, report).run()
                break
            except _PointsGone:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise VaultUnavailable(
                        repository.vault.url, "Points are purged and collected by somebody else all the time."
                    ) from None
        if request.dry_run or request.grace > 0 or report.condemned == before:
            break
    listen(Stage("done"))
    return report


class _PointsGone(Exception):
    """What was to be kept was purged and collected by somebody else meanwhile: begin again."""


class _Round:
    """One round: mark, delete what was condemned before, condemn what nothing needs now."""

    def __init__(
        self, repository: Repository, request: CollectRequest, clock: Clock, listen: Listener, report: CollectReport
    ) -> None:
        self._repository = repository
        self._request = request
        self._clock = clock
        self._listen = listen
        self._report = report
        self._write = not request.dry_run
        self._session = Announcement(repository, request.machine, COLLECT, clock)
        self._announced = False
        self._progress = Progress()

    def run(self) -> None:
        try:
            self._run()
        finally:
            if self._announced:
                self._session.end()

    def _run(self) -> None:
        repository, report = self._repository, self._report
        self._listen(Stage("preparing"))
        report.purged += len(purge(repository, self._clock(), write=self._write))
        # The order counts: what is condemned, what is there, who is at work, what is to be kept, where its chunks are.
        problems = repository.refresh()
        condemned = dict(repository.condemned)
        there = {pack: (kind, size) for kind, pack, size in list_packs(repository)}
        census = Census(repository, self._clock, write=self._write, own=self._session.id)
        roots = census.take()
        problems.errors[:] = repository.refresh().errors
        absent: set[bytes] = {
            pack for known in (*condemned.values(), *repository.condemned.values()) for _, pack in known.ids()
        }
        present: set[bytes] = {pack for _, pack, _ in list_packs(repository)}
        report.notes = roots.notes + _holders(roots)
        report.points, report.deleted_points = roots.points, roots.deleted
        report.problems = [error for error in problems.errors if not self._removed(error)]

        mark = self._mark(roots, present, census)
        unnamed = self._unnamed(there, absent)
        if report.problems and unnamed:
            raise report.problems[0]  # some packs may be needed, and nothing says what is in them
        plan = self._plan(mark, roots, absent, present)
        ripe, report.waiting = self._ripe(condemned, roots, there)
        strays = [] if roots.working or mark.missing else unnamed
        failed = self._copy(mark, plan, ripe, absent | self._lost(present), there)
        self._condemn(plan, strays, there, failed)
        self._sweep(ripe, failed, there, roots, bool(unnamed))
        if self._write:
            census.open_names()
        report.packs = len(present) - report.deleted

    def _removed(self, error: BackdriveError) -> bool:
        """Whether something that cannot be read is of no use and gone: its packs are condemned again if need be."""
        if isinstance(error, ObjectDamaged) and error.name.startswith(self._repository.layout.condemned):
            if self._write:
                self._repository.vault.delete(error.name)
            return self._write
        return isinstance(error, ObjectMissing)

    # --- looking ---

    def _mark(self, roots: Roots, present: set[bytes], census: Census) -> Mark:
        self._listen(Stage("scanning"))

        def tell(entries: int) -> None:
            self._progress.files = entries
            self._listen(self._progress)
            self._keep_up()

        mark = Mark(self._repository, present, tell)
        try:
            mark.points(sorted(roots.trees))
            mark.announced(sorted(roots.announced))
        except (Damaged, FormatTooNew) as error:
            if not roots.trees <= census.take().trees:
                raise _PointsGone from None
            raise Damaged(
                f"A recovery point cannot be read whole, so nobody knows what it needs and nothing is collected: "
                f"{error.args[0]}",
                "Run 'backdrive check'; what it cannot mend has to be deleted before space can be given back.",
            ) from error
        self._report.missing = mark.missing
        if mark.missing:
            self._report.notes.append(
                f"{mark.missing} chunks that points need are in no pack. Run 'backdrive check'. Packs that no index "
                "segment names were left alone."
            )
        return mark

    def _unnamed(self, there: dict[PackId, tuple[PackKind, int]], absent: set[bytes]) -> list[tuple[PackKind, PackId]]:
        """Packs that no index segment names: what a killed run left, or a run under way has just sent."""
        known = {info.id for _, info in self._repository.index.packs()}
        return [(kind, pack) for pack, (kind, _) in there.items() if pack not in known and pack not in absent]

    def _lost(self, present: set[bytes]) -> set[bytes]:
        known: set[bytes] = {info.id for _, info in self._repository.index.packs()}
        return known - present

    def _plan(self, mark: Mark, roots: Roots, absent: set[bytes], present: set[bytes]) -> Plan:
        """What to give up among the packs that are named, there, and not those of somebody who is still at work."""
        repository = self._repository
        young = self._packs_of(roots.working)
        packs = []
        for number, info in repository.index.packs():
            if info.id in absent or info.id not in present or info.id in young:
                continue
            used = mark.used(number)
            size = 0
            if used:
                blocks = repository.index.blocks(number)
                stored = sum(block.sealed for block in blocks) or 1
                need = sum(blocks[block].sealed * plain / blocks[block].plain for block, plain in used.items())
                size = max(round(info.size * min(need / stored, 1)), 1)
            packs.append(PackUse(number, info.id, info.kind, info.size, size))
        usual = {}
        if repository.damage is None:
            usual = {PackKind.DATA: repository.parameters.pack, PackKind.TREE: repository.parameters.pack // 4}
        plan = make_plan(packs, self._request.max_unused, self._request.max_repack, usual)
        self._report.used, self._report.unused = plan.kept_used, plan.kept_unused
        return plan

    def _packs_of(self, sessions: set[str]) -> set[bytes]:
        """The packs that these sessions have named."""
        repository = self._repository
        found: set[bytes] = set()
        if sessions:
            for entry in repository.vault.list(repository.layout.index):
                if repository.layout.session_of(entry.name) in sessions:
                    try:
                        found.update(record.id for record in repository.segment(entry.name))
                    except (Damaged, ObjectMissing):
                        continue
        return found

    def _ripe(
        self, condemned: dict[str, Condemned], roots: Roots, there: dict[PackId, tuple[PackKind, int]]
    ) -> tuple[dict[str, Condemned], list[Waiting]]:
        """What can be deleted now, and what has to wait."""
        ripe: dict[str, Condemned] = {}
        waiting: list[Waiting] = []
        for name, known in sorted(condemned.items()):
            blocking = [session for session in roots.waiting if name not in session.knows]
            until = known.made + self._request.grace
            if not blocking and until <= self._clock():
                ripe[name] = known
                continue
            sizes = [there[pack][1] for _, pack in known.ids() if pack in there]
            waiting.append(Waiting(len(sizes), sum(sizes), *_why(blocking, until)))
        return ripe, waiting

    # --- doing ---

    def _keep_up(self) -> None:
        if self._announced:
            self._session.keep_up()

    def _copy(
        self,
        mark: Mark,
        plan: Plan,
        ripe: dict[str, Condemned],
        absent: set[bytes],
        there: dict[PackId, tuple[PackKind, int]],
    ) -> set[bytes]:
        """Write anew what is needed of packs that go. Returns the packs of which that was not possible: they stay."""
        numbers = {info.id: number for number, info in self._repository.index.packs()}
        giving_up = [(pack.kind, pack.id) for pack in plan.repack]
        for known in ripe.values():
            for kind, pack in known.ids():
                if pack in there and pack in numbers and mark.used(numbers[pack]):
                    giving_up.append((kind, pack))
        failed: set[bytes] = set()
        self._report.repacked += len(giving_up)
        if not giving_up or not self._write:
            return failed
        self._listen(Stage("transferring"))
        self._session.begin()
        self._announced = True
        absent = absent | {pack for _, pack in giving_up}
        with self._repository.writer(self._session.id, frozenset(absent)) as writer:
            for kind, pack in giving_up:
                self._copy_one(mark, writer, kind, pack, numbers[pack], failed)
            writer.finish()
        return failed

    def _copy_one(
        self, mark: Mark, writer: Writer, kind: PackKind, pack: PackId, number: int, failed: set[bytes]
    ) -> None:
        def needs(block: int, offset: int) -> bool:
            return mark.needs(number, block, offset)

        try:
            self._report.copied += copy_pack(self._repository, writer, kind, pack, needs)
        except ObjectMissing:
            failed.add(pack)  # another collect is at work on it
        except (PackDamaged, FormatTooNew) as error:
            failed.add(pack)
            self._report.problems.append(error)
        self._progress.read = self._report.copied
        self._listen(self._progress)
        self._keep_up()

    def _condemn(
        self,
        plan: Plan,
        strays: list[tuple[PackKind, PackId]],
        there: dict[PackId, tuple[PackKind, int]],
        failed: set[bytes],
    ) -> None:
        packs = [(pack.kind, pack.id) for pack in (*plan.dead, *plan.repack) if pack.id not in failed] + strays
        if not packs:
            return
        report, repository = self._report, self._repository
        report.condemned += len(packs)
        size = sum(there[pack][1] for _, pack in packs if pack in there)
        report.condemned_size += size
        now = self._clock()
        if self._write:
            name = repository.layout.condemned + new_id()
            payload = formats.encode(Condemned(now, join_packs(packs)))
            repository.put_object(ObjectKind.CONDEMNED, name, payload)
        report.waiting.append(Waiting(len(packs), size, now + self._request.grace, "condemned just now"))

    def _sweep(
        self,
        ripe: dict[str, Condemned],
        failed: set[bytes],
        there: dict[PackId, tuple[PackKind, int]],
        roots: Roots,
        unnamed: bool,
    ) -> None:
        """Delete what was condemned before: the index forgets it, then the packs go, then what condemned them."""
        repository, report = self._repository, self._report
        ripe = {name: known for name, known in ripe.items() if not failed.intersection(p for _, p in known.ids())}
        if report.missing:  # what is missing might be in a pack that no segment names
            named = {info.id for _, info in repository.index.packs()}
            ripe = {
                name: known for name, known in ripe.items() if all(p in named or p not in there for _, p in known.ids())
            }
        packs = [pack for known in ripe.values() for pack in known.ids()]
        if not self._write:
            report.deleted += sum(pack in there for _, pack in packs)
            report.freed += sum(there[pack][1] for _, pack in packs if pack in there)
            return
        self._listen(Stage("deleting"))
        dead: set[bytes] = {pack for _, pack in packs}
        before, report.segments = merge_segments(repository, dead, roots.working, unnamed)
        report.segments_before = report.segments_before or before
        count, freed = delete_packs(repository, packs, {pack: size for pack, (_, size) in there.items()})
        report.deleted += count
        report.freed += freed
        for name in ripe:
            repository.vault.delete(name)
        repository.refresh()


def _holders(roots: Roots) -> list[str]:
    """Who keeps data that no point has any more, for a person."""
    notes = []
    for kind, what in ((DRIVE, "drives"), (BACKUP, "backups under way")):
        found = [known for known in roots.holding if known.kind == kind]
        if found:
            until = datetime.fromtimestamp(max(known.until for known in found) // 1_000_000_000, UTC)
            notes.append(
                f"Data of points that are gone is kept, and counted as needed, for {what} ({len(found)}); "
                f"for one that was killed until {until:%Y-%m-%d %H:%M} UTC."
            )
    return notes


def _why(blocking: list[Known], until: int) -> tuple[int, str]:
    """Until when something has to wait, and for what."""
    if not blocking:
        return until, "condemned lately"
    last = max(blocking, key=lambda session: session.until)
    others = f" and {len(blocking) - 1} more" if len(blocking) > 1 else ""
    return max(until, last.until), f"the backup {last.id[:8]}{others} was begun before it was condemned"
