"""A simulation of one vault and everybody who works on it: every order of vault operations, from one number.

Each actor is a thread that stops before every vault operation until the scheduler lets it go, so that a seed decides
the whole order. Clocks run by the scheduler's word, some of them wrong; actors crash, and sleep for days in the middle
of anything. The code that runs is the real one, over a vault in memory.

What is looked at after every step: a point that is there, or can be taken back, or is shown by a drive that keeps its
session up, misses no chunk. What is looked at in the end: nothing is left that nobody needs.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lmdb
import pytest

from cas.errors import BackupOverdue, ChunkMissing, PointNotFound
from cas.ids import ChunkId, MachineId, PointId
from cas.model import NodeKind, Tree
from cas.repository import Problems, Repository
from cas.store import formats, missing, trees
from cas.store.formats import ObjectKind, PackRecord
from cas.store.lifecycle import DRIVE, Deleted
from cas.store.sealer import open_object
from cas.tasks.announce import DAY, HOUR, MARGIN, Announcement
from cas.tasks.backup import backup
from cas.tasks.check import check
from cas.tasks.collect import CollectRequest, collect
from cas.tasks.delete import delete_points, undelete_points
from cas.tasks.deleted import deleted_points
from cas.tasks.reach import contents
from cas.tasks.requests import BackupRequest, Machine
from cas.vault.memory import MemoryVault
from tests.engine import cheap_keys, make_world
from tests.faults import WrappingVault, _Progress

SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
_TRACE: Final = int(os.environ.get("BACKDRIVE_TRACE", "60"))  # steps that a failure tells
_SKEW: Final = 25 * MINUTE  # of a wrong clock: two of them differ by less than the margin
assert 2 * _SKEW < MARGIN


class Crash(BaseException):
    """The process of an actor has died."""


class Violated(AssertionError):
    """Something that must hold does not."""


class Actor:
    """A process: its thread runs only between a grant and its next vault operation."""

    def __init__(self, world: Simulation, name: str, work: Callable[[Actor], None]) -> None:
        self.name = name
        self.skew = world.rng.choice((0, 0, 0, -_SKEW, _SKEW))
        self.vault = _Stepping(world.vault, self)
        self.crashed = False
        self.done = False
        self.failure: BaseException | None = None
        self.pending = ""  # the operation it is about to do
        self._world = world
        self._turn = threading.Condition()
        self._running = True
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.settle()

    def clock(self) -> int:
        return self._world.now + self.skew

    def _run(self, work: Callable[[Actor], None]) -> None:
        try:
            work(self)
        except Crash:
            pass
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.failure = error
        with self._turn:
            self.done = True
            self._running = False
            self._turn.notify_all()

    def step(self, what: str) -> None:
        """Stop until the scheduler lets the actor do `what`. Called by the actor's threads."""
        with self._one, self._turn:
            self.pending = what
            self._running = False
            self._turn.notify_all()
            while not self._running:
                self._turn.wait()
            if self.crashed:
                raise Crash

    def go(self) -> None:
        """Let it do its pending operation, and run to the next one."""
        with self._turn:
            self._running = True
            self._turn.notify_all()
        self.settle()

    def settle(self) -> None:
        with self._turn:
            while self._running:
                if not self._turn.wait(30):
                    raise Violated(f"{self.name} hangs after {self.pending}")


class _Stepping(WrappingVault):
    """Stops before every operation."""

    def __init__(self, inner: MemoryVault, actor: Actor) -> None:
        super().__init__(inner)
        self._actor = actor

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        self._actor.step(f"{op} {name}")
        yield _Progress()


@dataclass
class Drive:
    """What a drive shows, and until when its session holds if it is not renewed (in the vault's true time)."""

    points: dict[PointId, frozenset[bytes]] = field(default_factory=dict)
    until: int = 0


class Simulation:
    """One run. Raises Violated, or what an actor raised."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.vault = MemoryVault()
        self.world = make_world(self.vault, directory / "cache0")
        self.directory = directory
        self.now = 2_000_000_000 * SECOND  # later than any file that is made here
        self.actors: list[Actor] = []
        self.drives: list[Drive] = []
        self.trace: list[str] = []
        self.completed = 0
        self.freed = 0
        self._caches = 0
        self._files: dict[bytes, bytes] = {}
        with self.world.open() as repository:
            self.layout, self.keys = repository.layout, repository.keys
        self._reads: dict[tuple[str, bytes], Any] = {}

    # --- actors ---

    def spawn(self, name: str, work: Callable[[Actor], None]) -> Actor:
        actor = Actor(self, name, work)
        self.actors.append(actor)
        actor.start()
        return actor

    @contextmanager
    def open(self, actor: Actor, cache: str) -> Iterator[Repository]:
        with self.world.open(actor.vault, self.directory / cache) as repository:
            yield repository

    def machine(self, number: int) -> Callable[[Actor], None]:
        """A machine that backs up a few times; its tree is made of few contents, so that old ones come again."""
        source = self.directory / f"source{number}"
        rng = random.Random(self.rng.random())
        runs = rng.randint(1, 4)

        def work(actor: Actor) -> None:
            for _ in range(runs):
                for _ in range(rng.randint(1, 3)):
                    folder = source / rng.choice("ab")
                    folder.mkdir(parents=True, exist_ok=True)
                    file = folder / rng.choice("xyz")
                    content = rng.choice("pqrstu") * 200
                    if not file.exists() or file.read_text() != content:
                        file.write_text(content)
                        os.utime(file, ns=(0, rng.randrange(1 << 60)))
                with self.open(actor, f"machine{number}") as repository:
                    request = BackupRequest(
                        machine=Machine(MachineId(f"{number:032x}"), f"m{number}"),
                        paths=[os.fsencode(source)],
                        force_full=rng.random() < 0.1,
                    )
                    try:
                        backup(repository, request, now=actor.clock)
                        self.completed += 1
                    except BackupOverdue:
                        pass

        return work

    def operator(self, number: int) -> Callable[[Actor], None]:
        """Deletes points, and takes some back."""
        rng = random.Random(self.rng.random())

        def work(actor: Actor) -> None:
            for _ in range(rng.randint(1, 5)):
                with self.open(actor, f"operator{number}") as repository:
                    points = repository.points(Problems())
                    gone = deleted_points(repository, Problems())
                    if gone and rng.random() < 0.4:
                        try:
                            undelete_points(repository, [rng.choice(gone).point])
                        except PointNotFound:
                            pass
                    elif points:
                        chosen = points if rng.random() < 0.4 else rng.sample(points, rng.randint(1, len(points)))
                        try:
                            delete_points(repository, chosen, actor.clock, purge_now=rng.random() < 0.6)
                        except PointNotFound:
                            pass  # a collect has purged what another operator had deleted

        return work

    def collector(self, number: int) -> Callable[[Actor], None]:
        rng = random.Random(self.rng.random())

        def work(actor: Actor) -> None:
            for _ in range(rng.randint(1, 3)):
                with self.open(actor, f"collector{number}") as repository:
                    self.freed += self.collect(repository, actor.clock, rng.choice((0, 20, 100)), rng.choice((0, HOUR)))

        return work

    @staticmethod
    def collect(repository: Repository, clock: Callable[[], int], max_unused: float, grace: int) -> int:
        request = CollectRequest(machine="0" * 32, max_unused=max_unused, grace=grace)
        return collect(repository, request, clock).freed

    def drive(self, number: int) -> Callable[[Actor], None]:
        """Shows points, and reads chunks of theirs through an index that grows old."""
        rng = random.Random(self.rng.random())
        shown = Drive()
        self.drives.append(shown)

        def work(actor: Actor) -> None:
            with self.open(actor, f"drive{number}") as repository:
                session = Announcement(repository, "0" * 32, DRIVE, actor.clock)
                repository.refresh()
                reader = repository.reader()
                for turn in range(rng.randint(3, 120)):
                    actor.step("look")  # while others work
                    if turn == 0 or session.due <= actor.clock() or rng.random() < 0.05:
                        shown.until = 0
                        points = session.show(repository.points(Problems()))
                        repository.refresh()
                        shown.points = {point.id: self.needs(point.root) for point in points}
                        shown.until = actor.clock() - actor.skew + HOUR  # renewed after that: no promise meanwhile
                    chunks = sorted(chunk for needed in shown.points.values() for chunk in needed)
                    if not chunks:
                        continue
                    before = self.now
                    try:
                        reader.chunk(ChunkId(rng.choice(chunks)))
                    except ChunkMissing:
                        if max(before, self.now) < shown.until:
                            raise
                session.end()
                shown.until = 0

        return work

    # --- the run ---

    def run(self, steps: int = 2500) -> None:
        """Let everybody work, then look at what is left."""
        rng = self.rng
        for number in range(rng.randint(1, 2)):
            self.spawn(f"machine{number}", self.machine(number))
        for number in range(rng.randint(1, 2)):
            self.spawn(f"collector{number}", self.collector(number))
        self.spawn("operator", self.operator(0))
        if rng.random() < 0.5:
            self.spawn("drive", self.drive(0))
        again = {"machine": self.machine, "collector": self.collector, "operator": self.operator}
        favourite: Actor | None = None
        restless, sleepy = rng.choice((0.02, 0.08, 0.3)), rng.choice((0, 0.02, 0.1))
        hurry = rng.choice((1, 0.2, 0.03))
        asleep: dict[Actor, int] = {}  # until which step
        for step in range(steps):
            ready = [actor for actor in self.actors if not actor.done]
            if not ready:
                break
            # Long runs of one actor reach more than a fair shuffle does: another one sleeps through all of them.
            awake = [actor for actor in ready if asleep.get(actor, 0) <= step] or ready
            if favourite not in awake or rng.random() < restless:
                favourite = rng.choice(awake)
            assert favourite is not None
            if rng.random() < sleepy and asleep.get(favourite, 0) <= step and len(awake) > 1:
                asleep[favourite] = step + rng.randint(50, 600)
                continue
            self._pass_time(hurry)
            if rng.random() < 0.004:
                favourite.crashed = True
            self.step(favourite)
            if favourite.done and rng.random() < 0.5:
                kind = favourite.name.rstrip("0123456789")
                number = int(favourite.name[len(kind) :] or 0)
                if kind in again and len(self.actors) < 16:
                    self.spawn(favourite.name, again[kind](number))
        for actor in self.actors:
            actor.crashed = not actor.done
            while not actor.done:
                self.step(actor)
        self.look_at_the_end()

    def _pass_time(self, hurry: float) -> None:
        kind = self.rng.random() ** (1 / hurry)  # hurry 1: a tenth of the steps take longer than a moment
        if kind < 0.9:
            self.now += self.rng.randint(1, 100) * SECOND // 1000
        elif kind < 0.985:
            self.now += self.rng.randint(1, 90) * MINUTE
        elif kind < 0.997:
            self.now += self.rng.randint(1, 40) * HOUR
        else:
            self.now += self.rng.randint(1, 20) * DAY

    def step(self, actor: Actor) -> None:
        what = actor.pending
        self.trace.append(f"{self.now / SECOND:.3f} {actor.name}{' dies' if actor.crashed else ''}: {what}")
        actor.go()
        if actor.failure is not None:
            raise actor.failure
        if what.startswith(("delete", "put")):
            self.look()

    # --- what must hold ---

    def look(self) -> None:
        """Every point that anybody may still open has all its chunks, in packs that segments name."""
        objects = dict(self.vault._objects)
        named: set[bytes] = set()
        for name in objects:
            if name.startswith(self.layout.index):
                for pack, chunks in self._segment(name):
                    if pack in objects:
                        named |= chunks
        for title, needed in self._must_be_whole(objects):
            missing = needed - named
            if missing:
                raise Violated(f"{title} misses {len(missing)} of {len(needed)} chunks")

    def _must_be_whole(self, objects: dict[str, bytes]) -> Iterator[tuple[str, frozenset[bytes]]]:
        for name in objects:
            if name.startswith(self.layout.points):
                needed = self._point(name)
                if needed is not None:
                    yield f"the point {name[-32:-24]}", needed
            elif name.startswith(self.layout.deleted):
                purge_after, needed = self._deleted(name)
                if self.layout.points + name.rpartition("/")[2][:32] in objects:
                    continue  # alive, and looked at as such; or its purge was interrupted
                if purge_after > self.now + _SKEW:
                    yield f"the deleted point {name.rpartition('/')[2][:8]}", needed
        for drive in self.drives:
            if self.now < drive.until:
                for point, needed in drive.points.items():
                    yield f"the point {point[:8]}, which a drive shows,", needed

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        key = (name, self.vault._objects[name])  # a name may be taken again when it was free
        if key not in self._reads:
            self._reads[key] = read()
        return self._reads[key]

    def _open(self, kind: ObjectKind, name: str) -> bytes:
        return open_object(self.keys, kind, name, self.vault.get(name))

    def _segment(self, name: str) -> list[tuple[str, frozenset[bytes]]]:
        def read() -> list[tuple[str, frozenset[bytes]]]:
            found = []
            for record in formats.decode(self._open(ObjectKind.INDEX, name), list[PackRecord], name):
                ids = b"".join(block.ids for block in record.blocks)
                chunks = frozenset(ids[start : start + 32] for start in range(0, len(ids), 32))
                for chunk in chunks:
                    self._files.setdefault(chunk, b"")
                found.append((self.layout.pack(formats.PackKind(record.kind), record.id), chunks))  # type: ignore[arg-type]
                self._remember(record)
            return found

        return self._once(name, read)  # type: ignore[no-any-return]

    def _remember(self, record: PackRecord) -> None:
        """Keep the metadata of a pack while it is there, so that what a point needs is known when it has gone."""
        if record.kind != formats.PackKind.TREE:
            return
        from cas.store.sealer import PackOpener

        name = self.layout.pack(formats.PackKind.TREE, record.id)  # type: ignore[arg-type]
        data = self.vault._objects.get(name)
        if data is None:
            return
        opener = PackOpener(self.keys, formats.PackKind.TREE, record.id, record.salt)  # type: ignore[arg-type]
        place = formats.PACK_HEADER_BYTES
        for number, block in enumerate(record.blocks):
            plain = opener.open_block(number, block.codec, block.plain, data[place : place + block.sealed], place)
            offset = 0
            for position, length in enumerate(block.lengths):
                self._files[block.ids[position * 32 : position * 32 + 32]] = plain[offset : offset + length]
                offset += length
            place += block.sealed

    def needs(self, root: bytes) -> frozenset[bytes]:
        """Every chunk below a tree."""
        found: set[bytes] = set()
        stack = [root]
        while stack:
            tree = stack.pop()
            if tree in found:
                continue
            found.add(tree)
            data = self._files.get(tree)
            if not data:
                continue  # never seen: `look` says that it is missing
            decoded = trees.read(lambda _, data=data: data, ChunkId(tree))  # type: ignore[misc]
            if not isinstance(decoded, Tree):
                stack.extend(page.tree for page in decoded)
                continue
            for node in decoded.nodes:
                if node.kind == NodeKind.DIRECTORY:
                    stack.append(node.content)
                elif node.kind == NodeKind.FILE:
                    found.update(content for _, content, depth in contents(node) if content and depth == 0)
        return frozenset(found)

    def _point(self, name: str) -> frozenset[bytes] | None:
        def read() -> frozenset[bytes] | None:
            if formats.is_void_size(self.vault.size(name)):
                return None
            found = formats.decode(self._open(ObjectKind.POINT, name), dict[str, Any], name)
            return self.needs(found["root"])

        return self._once(name, read)  # type: ignore[no-any-return]

    def _deleted(self, name: str) -> tuple[int, frozenset[bytes]]:
        def read() -> tuple[int, frozenset[bytes]]:
            found = formats.decode(self._open(ObjectKind.DELETED, name), Deleted, name)
            point = formats.decode(found.point, dict[str, Any], name)
            return found.purge_after, self.needs(point["root"])

        return self._once(name, read)  # type: ignore[no-any-return]

    def look_at_the_end(self) -> None:
        """When all is quiet for long, and collected: what is there is whole, and nothing else is there."""
        self.now += 30 * DAY
        with self.world.open(cache=self.directory / "last") as repository:
            for _ in range(2):
                self.now += DAY
                self.collect(repository, lambda: self.now, 0, 0)
            self.look()
            report = check(repository, 100)
            problems = [problem for problem in report.problems if problem.kind != "machine"]  # they never registered
            if problems:
                raise Violated(f"{problems[0]}")
        left = sorted(self.vault._objects)
        needed: set[bytes] = set()
        for _, chunks in self._must_be_whole(dict(self.vault._objects)):
            needed |= chunks
        held: list[bytes] = []
        named = set()
        for name in left:
            if name.startswith(self.layout.index):
                for pack, chunks in self._segment(name):
                    named.add(pack)
                    held += chunks
        packs = {name for name in left if name.startswith((self.layout.root + "data/", self.layout.root + "tree/"))}
        if packs != named:
            raise Violated(f"{len(packs - named)} packs are in no segment, {len(named - packs)} are gone")
        if len(held) != len(set(held)) or set(held) != needed:
            raise Violated(f"{len(held)} chunks are kept, {len(needed)} are needed")
        rest = (self.layout.condemned, self.layout.sessions)
        if any(name.startswith(rest) for name in left):
            raise Violated(f"left behind: {[name for name in left if name.startswith(rest)]}")


def simulate(directory: Path, seed: int) -> Simulation:
    """Run a seed in an empty directory."""
    directory.mkdir(parents=True, exist_ok=True)
    chance = random.Random(~seed)
    with pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        patch.setattr(secrets, "token_bytes", chance.randbytes)
        patch.setattr(secrets, "token_hex", lambda count: chance.randbytes(count).hex())
        patch.setattr(os, "cpu_count", lambda: 1)  # one sealing thread: else two race for the order in a pack
        patch.setattr(missing, "_PAUSE", 0.0)  # seconds of the real clock
        patch.setattr(missing, "_VAIN", 0.0)
        patch.setattr(lmdb, "open", functools.partial(lmdb.open, sync=False))  # no power cuts here
        simulation = Simulation(directory, seed)
        try:
            simulation.run()
        except BaseException as error:
            error.add_note(f"seed {seed}, the last steps:\n" + "\n".join(simulation.trace[-_TRACE:]))
            raise
        finally:
            for actor in simulation.actors:
                actor.crashed = True
                while not actor.done:
                    actor.go()
    return simulation
