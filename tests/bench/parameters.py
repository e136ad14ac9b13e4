"""Choose chunk, block and compression parameters by measurement.

    python tests/bench/parameters.py WORKDIR --tree DIR [--tree DIR ...]           # first backups and 30 versions
    python tests/bench/parameters.py WORKDIR --only versions --scale 0.3 --peers   # beside restic and borg on PATH
    python tests/bench/parameters.py WORKDIR --only versions --days 5 --scale 0.2  # a quick look

WORKDIR receives a generated corpus (about 450 MB at scale 1, best on a tmpfs) and, with ``--peers``, repositories: 6 GB
at scale 0.3, three times that at scale 1. It is left for the caller to delete. First backups take two minutes a tree on
one core, the versions ten at scale 1; the peers ten more at scale 0.3. Releases of pure-Python packages come through
``pip download``. Every ``--tree`` is measured as a first backup of small files; the first of them also fills the disk
image, so it should hold 400 MB or more. Without one, the standard library of the running Python is taken.

What is modelled: cutting, deduplication and one zstd frame a block are real; encryption adds ``SEAL_BYTES`` a block; a
chunk costs ``CHUNK_BYTES`` in each of the table of contents and the index; a new version of a file ``NODE_BYTES`` of
metadata, and each new piece of a long content list its ids. Trees of unchanged files and padding are left out.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3
from pyfastcdc import FastCDC, NormalizedChunking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SEED = 20_240_229
CHUNK_BYTES = 36  # chunk id and its place, once in a table of contents and once in an index segment
NODE_BYTES = 132  # one file version in a tree: attributes, name, id of the contents
SEAL_BYTES = 28  # salt share and tag of a sealed block
CHUNK_SECONDS, BLOCK_SECONDS = 6e-6, 50e-6
SMALL_FILE = MIB  # larger files fill blocks of their own class
SAMPLES = 24  # blocks of a class that are decompressed for timing

RELEASES = {
    "click": ("8.0.4", "8.1.0", "8.1.2", "8.1.3", "8.1.5", "8.1.6", "8.1.7", "8.1.8"),
    "rich": ("13.2.0", "13.3.5", "13.4.2", "13.5.3", "13.6.0", "13.7.1", "13.8.1", "13.9.4"),
    "attrs": ("21.4.0", "22.1.0", "22.2.0", "23.1.0", "23.2.0", "24.1.0", "24.2.0", "24.3.0"),
    "pygments": ("2.13.0", "2.14.0", "2.15.0", "2.15.1", "2.16.1", "2.17.1", "2.17.2", "2.18.0"),
    "networkx": ("2.7.1", "2.8.4", "2.8.8", "3.0", "3.1", "3.2", "3.2.1", "3.3"),
    "django": ("5.0.2", "5.0.4", "5.0.7", "5.0.8", "5.0.10", "5.1.15", "5.2.1", "5.2.8"),
}


# ---------------------------------------------------------------------------------------------------- what is varied


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a large file is cut: bytes, as FastCDC takes them."""

    average: int
    smallest: int = 4  # average // smallest
    largest: int = 4  # average * largest
    normalized: NormalizedChunking = 2

    def chunker(self) -> FastCDC:
        return FastCDC(
            self.average,
            min_size=self.average // self.smallest,
            max_size=min(self.average * self.largest, 16 * MIB),
            normalized_chunking=self.normalized,
            seed=SEED,
        )

    def __str__(self) -> str:
        return f"{size(self.average)}/{self.smallest} x{self.largest} n{self.normalized}"


@dataclass(frozen=True, slots=True)
class Tiers:
    """Cutting by size of file: ``limits[i]`` is the largest file that ``cuttings[i]`` cuts; the last has no limit.

    A file of at most ``whole`` bytes is one chunk.
    """

    cuttings: tuple[Cutting, ...]
    limits: tuple[int, ...] = ()
    whole: int = 0
    piece: int = 128  # chunk ids in an average piece of a content list

    def choose(self, length: int) -> int | None:
        if length <= max(self.whole, self.cuttings[0].average // self.cuttings[0].smallest):
            return None
        return next((i for i, limit in enumerate(self.limits) if length <= limit), len(self.limits))

    def __str__(self) -> str:
        whole = f" whole<={size(self.whole)}" if self.whole else ""
        parts = [f"<={size(limit)}: {cut}" for limit, cut in zip(self.limits, self.cuttings, strict=False)]
        piece = f" lists of {self.piece}" if self.piece != 128 else ""
        return ", ".join([*parts, str(self.cuttings[-1])]) + whole + piece


@dataclass(frozen=True, slots=True)
class Framing:
    """How chunks become blocks: plain bytes of a block of small and of large files, and zstd's settings."""

    small: int = 4 * MIB
    large: int = MIB
    level: int = 3
    window_log: int = 0  # 0: zstd's own choice for the level
    long_distance: bool = False

    def compressor(self) -> zstandard.ZstdCompressor:
        if not (self.window_log or self.long_distance):
            return zstandard.ZstdCompressor(level=self.level)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self.level, window_log=self.window_log, enable_ldm=self.long_distance
        )
        return zstandard.ZstdCompressor(compression_params=parameters)

    def __str__(self) -> str:
        window = f" w{self.window_log}" if self.window_log else ""
        return f"{size(self.small)}+{size(self.large)} L{self.level}{window}{' ldm' if self.long_distance else ''}"


def size(count: int) -> str:
    for unit, name in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)


# --------------------------------------------------------------------------------------------------------- the model


@dataclass
class Packer:
    """Collects new chunks into blocks and compresses them; one for each framing of a simulation."""

    framing: Framing
    stored: int = 0
    blocks: int = 0
    raw: int = 0
    seconds: float = 0.0
    pending: dict[bool, list[memoryview]] = field(default_factory=lambda: {False: [], True: []})
    filled: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    frames: dict[bool, list[tuple[int, bytes]]] = field(default_factory=lambda: {False: [], True: []})

    def __post_init__(self) -> None:
        self.compressor = self.framing.compressor()

    def add(self, data: memoryview, *, large: bool) -> None:
        self.pending[large].append(data)
        self.filled[large] += len(data)
        if self.filled[large] >= (self.framing.large if large else self.framing.small):
            self._seal(large)

    def finish(self) -> None:
        """Seal what is pending, as the end of a backup does."""
        for large in (False, True):
            if self.pending[large]:
                self._seal(large)

    def _seal(self, large: bool) -> None:
        plain = b"".join(self.pending[large])
        self.pending[large].clear()
        self.filled[large] = 0
        begin = time.thread_time()
        frame = self.compressor.compress(plain)
        self.seconds += time.thread_time() - begin
        self.blocks += 1
        self.raw += len(plain)
        self.stored += min(len(frame), len(plain)) + SEAL_BYTES
        frames = self.frames[large]
        if len(frames) < SAMPLES:
            frames.append((len(plain), frame))
        elif self.blocks % 7 == 0:
            frames[self.blocks // 7 % SAMPLES] = (len(plain), frame)

    def opening(self, large: bool) -> tuple[float, float]:
        """Median ms to decompress a block of the class, and MB/s over the sampled ones."""
        decompressor = zstandard.ZstdDecompressor()
        times, total = [], 0
        for length, frame in self.frames[large]:
            begin = time.thread_time()
            decompressor.decompress(frame)
            times.append(time.thread_time() - begin)
            total += length
        if not times:
            return 0.0, 0.0
        return statistics.median(times) * 1e3, total / max(sum(times), 1e-9) / 1e6


class Simulation:
    """One way of cutting, with several ways of framing fed from the same chunks."""

    def __init__(self, tiers: Tiers, framings: Iterable[Framing]) -> None:
        self.tiers = tiers
        self.packers = [Packer(framing) for framing in framings]
        self.chunkers = [cutting.chunker() for cutting in tiers.cuttings]
        self.known: set[bytes] = set()
        self.pieces: set[bytes] = set()
        self.seen = 0
        self.versions = 0
        self.list_bytes = 0
        self.new_bytes = 0
        self.cut_seconds = 0.0

    def add(self, data: bytes) -> None:
        """Take one new or changed file."""
        self.versions += 1
        begin = time.thread_time()
        tier = self.tiers.choose(len(data))
        view = memoryview(data)
        chunks = [view] if tier is None else [chunk.data for chunk in self.chunkers[tier].cut_buf(data)]
        ids = [blake3(chunk).digest() for chunk in chunks]
        self.cut_seconds += time.thread_time() - begin
        self.seen += len(ids)
        large = len(data) > SMALL_FILE
        for chunk, chunk_id in zip(chunks, ids, strict=True):
            if len(chunk) and chunk_id not in self.known:
                self.known.add(chunk_id)
                self.new_bytes += len(chunk)
                for packer in self.packers:
                    packer.add(chunk, large=large)
        if len(ids) > 1:
            self._list(ids)

    def _list(self, ids: Sequence[bytes]) -> None:
        piece: list[bytes] = []
        for position, chunk_id in enumerate(ids):
            piece.append(chunk_id)
            if chunk_id[0] % self.tiers.piece == 0 or position == len(ids) - 1:
                name = b"".join(piece)
                if name not in self.pieces:
                    self.pieces.add(name)
                    self.list_bytes += CHUNK_BYTES * len(piece) + 2 * CHUNK_BYTES
                piece = []

    def finish(self) -> None:
        for packer in self.packers:
            packer.finish()

    def rows(self, extra: str = "") -> Iterator[tuple[str, ...]]:
        """What ``HEADER`` names, a row for each framing."""
        index = 2 * CHUNK_BYTES * len(self.known)
        trees = NODE_BYTES * self.versions + self.list_bytes
        for packer in self.packers:
            total = packer.stored + index + trees
            cpu = packer.seconds + self.seen * CHUNK_SECONDS + packer.blocks * BLOCK_SECONDS
            small, large = packer.opening(False), packer.opening(True)
            yield (
                f"{self.tiers}{extra}",
                str(packer.framing),
                f"{total / 1e6:.1f}",
                f"{packer.stored / 1e6:.1f}",
                f"{index / 1e6:.1f}",
                f"{trees / 1e6:.1f}",
                f"{len(self.known) / 1e3:.1f}",
                f"{self.new_bytes / 1e6:.0f}",
                f"{packer.seconds:.1f}",
                f"{cpu:.1f}",
                f"{self.cut_seconds:.1f}",
                f"{small[0]:.1f} / {large[0]:.1f}",
                f"{small[1]:.0f} / {large[1]:.0f}",
            )


HEADER = (
    "chunks", "blocks, zstd", "stored MB", "blocks MB", "index MB", "trees MB", "chunks k", "new MB",
    "zstd s", "model CPU s", "cut+hash s", "open ms small / large", "unzstd MB/s small / large",
)  # fmt: skip


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


# -------------------------------------------------------------------------------------------------------- the corpus


def files_of(tree: Path) -> Iterator[Path]:
    """Regular files in walk order: sorted within a directory."""
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


class Corpus:
    """A directory that changes from day to day, the same for the same arguments."""

    def __init__(self, root: Path, filler: Path, scale: float, days: int) -> None:
        self.root, self.filler, self.scale, self.days = root, filler, scale, days
        self.random = random.Random(SEED)
        self.wheels = root.parent / "wheels"
        letters = "etaoinshrdlucmfwypvbgk"
        self.words = ["".join(self.random.choices(letters, k=self.random.randint(2, 11))) for _ in range(6000)]

    def advance(self, day: int) -> None:
        if day == 0:
            shutil.rmtree(self.root, ignore_errors=True)
            for name in ("db", "log", "src", "image"):
                (self.root / name).mkdir(parents=True)
        self._database(day)
        self._logs(day)
        self._sources(day)
        self._image(day)

    def _customer(self) -> tuple[str, str, str, str, int, float]:
        pick = self.random
        name = f"{pick.choice(self.words)} {pick.choice(self.words)}".title()
        mail = f"{name.replace(' ', '.').lower()}{pick.randrange(1000)}@{pick.choice(self.words)}.example"
        note = " ".join(pick.choices(self.words, k=pick.randint(4, 36)))
        return name, mail, pick.choice(self.words), note, pick.randrange(10**7), 1.7e9 + pick.randrange(10**7) / 10

    def _database(self, day: int) -> None:
        rows = int(330_000 * self.scale)
        connection = sqlite3.connect(self.root / "db" / "shop.sqlite")
        with connection:
            if day == 0:
                connection.execute(
                    "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, mail TEXT, city TEXT, note TEXT,"
                    " balance INTEGER, updated REAL)"
                )
                connection.execute("CREATE INDEX by_mail ON customer (mail)")
            new = [self._customer() for _ in range(rows if day == 0 else int(300 * self.scale))]
            connection.executemany(
                "INSERT INTO customer (name, mail, city, note, balance, updated) VALUES (?, ?, ?, ?, ?, ?)", new
            )
            if day:
                updates = int(500 * self.scale)
                changed = [(*self._customer()[3:], self.random.randint(1, rows)) for _ in range(updates)]
                connection.executemany("UPDATE customer SET note = ?, balance = ?, updated = ? WHERE id = ?", changed)
        connection.close()

    def _logs(self, day: int) -> None:
        """An access log and an application log: appended every day, rotated every week, the older one gzipped."""
        pick, stamp = self.random, 1.7e9 + day * 86400
        for name, lines in (("access.log", 16_000), ("app.log", 9_000)):
            log = self.root / "log" / name
            if day and day % 7 == 0:
                previous = log.with_name(f"{name}.1")
                if previous.exists():
                    log.with_name(f"{name}.{day // 7}.gz").write_bytes(gzip.compress(previous.read_bytes(), 6, mtime=0))
                log.rename(previous)
            with log.open("a") as out:
                for _ in range(int(lines * (20 if day == 0 else 1) * self.scale)):
                    stamp += pick.random() * 5
                    out.write(self._access(stamp) if name == "access.log" else self._event(stamp))

    def _access(self, stamp: float) -> str:
        pick = self.random
        path = f"/{pick.choice(self.words[:300])}/{pick.choice(self.words)}?id={pick.randrange(10**6)}"
        return (
            f"10.{pick.randrange(4)}.{pick.randrange(256)}.{pick.randrange(256)} - - [{stamp:.3f}] "
            f'"GET {path} HTTP/1.1" {pick.choice((200, 200, 200, 304, 404))} {pick.randrange(50_000)} "-" '
            f'"Mozilla/5.0 (X11; Linux x86_64) agent/{pick.randrange(40)}"\n'
        )

    def _event(self, stamp: float) -> str:
        pick = self.random
        words = " ".join(pick.choices(self.words[:500], k=pick.randint(3, 14)))
        return f"{stamp:.6f} {pick.choice(('INFO', 'DEBUG', 'WARN'))} worker-{pick.randrange(16)} {words}\n"

    def _sources(self, day: int) -> None:
        for name, versions in RELEASES.items():
            before = -1 if day == 0 else (day - 1) * len(versions) // self.days
            now = day * len(versions) // self.days
            if now != before:
                wheel = self._wheel(name, versions[now])
                shutil.rmtree(self.root / "src" / name, ignore_errors=True)
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(self.root / "src" / name)

    def _wheel(self, name: str, version: str) -> Path:
        self.wheels.mkdir(parents=True, exist_ok=True)
        pattern = f"{name}-{version}-*.whl"
        found = list(self.wheels.glob(pattern)) + list(self.wheels.glob(pattern.capitalize()))
        if not found:
            command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "-d", str(self.wheels), f"{name}=={version}"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            return self._wheel(name, version)
        return found[0]

    @functools.cached_property
    def _fillers(self) -> list[Path]:
        found = [path for path in files_of(self.filler) if path.stat().st_size >= 2 * KIB]
        random.Random(SEED).shuffle(found)
        return found

    def _filling(self) -> Iterator[bytes]:
        """Contents of ever new files, padded to whole 4 KiB sectors."""
        while self._fillers:
            data = self._fillers.pop().read_bytes()
            yield data + bytes(-len(data) % 4096)

    def _image(self, day: int) -> None:
        """A disk image: files at sector boundaries; each day has 200 overwrites and 60 swaps of extents."""
        path, pick, total = self.root / "image" / "disk.img", self.random, int(200 * MIB * self.scale) // 4096 * 4096
        if day == 0:
            with path.open("wb") as out:
                for data in self._filling():
                    out.write(data)
                    if out.tell() >= total * 9 // 10:
                        break
                out.truncate(max(total, out.tell()))
            return
        with path.open("r+b") as image:
            for _, data in zip(range(int(200 * self.scale)), self._filling(), strict=False):
                image.seek(pick.randrange(total // 4096) * 4096)
                image.write(data[: 64 * KIB])
            for _ in range(int(60 * self.scale)):
                length = pick.randrange(16, 257) * 4096
                places = [pick.randrange((total - length) // 4096) * 4096 for _ in range(2)]
                extents = []
                for place in places:
                    image.seek(place)
                    extents.append(image.read(length))
                for place, extent in zip(reversed(places), extents, strict=True):
                    image.seek(place)
                    image.write(extent)


# --------------------------------------------------------------------------------------------------------- the peers


@dataclass(frozen=True)
class Peer:
    """Another backup program and the settings to try it with."""

    name: str
    program: str
    options: tuple[str, ...]

    def run(self, work: Path, corpus: Path, day: int, last: bool) -> None:
        repository = self.repository(work)
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": "measured-only",
            "RESTIC_CACHE_DIR": str(work / "cache" / "restic"),
            "BORG_PASSPHRASE": "measured-only",
            "BORG_BASE_DIR": str(work / "cache" / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        commands: list[list[str]] = []
        if self.program == "restic":
            if day == 0:
                commands.append(["restic", "init", "-q", "--repository-version", "2", "-r", str(repository)])
            commands.append(["restic", "backup", "-q", "-r", str(repository), *self.options, str(corpus)])
        else:
            if day == 0:
                repository.parent.mkdir(parents=True, exist_ok=True)
                commands.append(["borg", "init", "-e", "repokey", str(repository)])
            commands.append(["borg", "create", *self.options, f"{repository}::day{day}", str(corpus)])
            if last:
                commands.append(["borg", "compact", str(repository)])
        for command in commands:
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def repository(self, work: Path) -> Path:
        return work / "peers" / self.name.replace(" ", "_").replace(",", "_")

    def stored(self, work: Path) -> int:
        return sum(path.stat().st_size for path in files_of(self.repository(work)))


PEERS = (
    Peer("restic auto", "restic", ("--compression", "auto")),
    Peer("restic max", "restic", ("--compression", "max")),
    Peer("borg zstd,3", "borg", ("--compression", "zstd,3")),
    Peer("borg zstd,10", "borg", ("--compression", "zstd,10")),
    Peer("borg zstd,10 64K", "borg", ("--compression", "zstd,10", "--chunker-params", "buzhash,12,20,16,4095")),
    Peer("borg zstd,10 16K", "borg", ("--compression", "zstd,10", "--chunker-params", "buzhash,10,18,14,4095")),
)


# ------------------------------------------------------------------------------------------------------- the sweeps

K4, K8, K16, K32, K64, K128, K256 = (Cutting(n * KIB) for n in (4, 8, 16, 32, 64, 128, 256))
M1 = Cutting(MIB)
BASE = Framing()


def first_sweep() -> list[tuple[Tiers, list[Framing]]]:
    """For trees of small files. The first entry is also measured in other orders."""
    blocks = [Framing(small=n * KIB) for n in (256, 512, 1024, 2048, 8192)]
    levels = [Framing(level=level) for level in (1, 2, 4, 5, 6)]
    windows = [
        Framing(window_log=22),
        Framing(small=8 * MIB, window_log=23),
        Framing(small=8 * MIB, window_log=23, long_distance=True),
        Framing(level=9, window_log=22),
    ]
    sweep = [(Tiers((K64,), whole=256 * KIB), [BASE, *blocks, *levels, *windows])]
    sweep += [(Tiers((K8,), whole=n * KIB), [BASE]) for n in (64, 256, 1024)]
    sweep += [(Tiers((cutting,)), [BASE]) for cutting in (K8, K16, K32, K64, K128, K256, M1)]
    return sweep


def version_sweep() -> list[tuple[Tiers, list[Framing]]]:
    """For thirty versions of files that change in place."""
    whole = 256 * KIB
    framings = [BASE, *(Framing(large=n * KIB) for n in (256, 512, 2048, 4096, 8192))]
    framings += [Framing(level=level) for level in (1, 2, 5, 6)]
    sweep = [(Tiers((K8,), whole=whole), framings)]
    sweep += [(Tiers((cutting,), whole=whole), [BASE]) for cutting in (K4, K16, K32, K64, K128, K256, M1)]
    shapes = (
        Cutting(8 * KIB, normalized=1),
        Cutting(8 * KIB, normalized=3),
        Cutting(8 * KIB, smallest=2),
        Cutting(8 * KIB, smallest=8),
        Cutting(8 * KIB, largest=8),
    )
    sweep += [(Tiers((cutting,), whole=whole), [BASE]) for cutting in shapes]
    sweep += [(Tiers((K8,), whole=whole, piece=piece), [BASE]) for piece in (16, 32, 64)]
    sweep += [(Tiers((K8,), whole=n * KIB), [BASE]) for n in (0, 1024)]
    sweep.append((Tiers((K8, K32), (128 * MIB,), whole=whole), [BASE]))
    sweep.append((Tiers((K16, K64, K256), (16 * MIB, GIB), whole=whole), [BASE]))
    return sweep


def measure_first(tree: Path, sweep: list[tuple[Tiers, list[Framing]]]) -> None:
    contents = [(path, path.read_bytes()) for path in files_of(tree)]
    rows: list[tuple[str, ...]] = []
    for tiers, framings in sweep:
        simulation = Simulation(tiers, framings)
        for _, data in contents:
            simulation.add(data)
        simulation.finish()
        rows += simulation.rows()
    orders = {
        " by extension": sorted(contents, key=lambda item: (item[0].suffix, item[0])),
        " by extension in a directory": sorted(contents, key=lambda item: (item[0].parent, item[0].suffix, item[0])),
        " by name": sorted(contents, key=lambda item: (item[0].suffix, item[0].name, item[0])),
        " by extension and size": sorted(contents, key=lambda item: (item[0].suffix, len(item[1]))),
    }
    for label, ordered in orders.items():
        simulation = Simulation(sweep[0][0], [BASE])
        for _, data in ordered:
            simulation.add(data)
        simulation.finish()
        rows += simulation.rows(label)
    total = sum(len(data) for _, data in contents)
    table(f"First backup: {tree.name}, {len(contents)} files, {total / 1e6:.0f} MB", HEADER, rows)


def measure_versions(corpus: Corpus, sweep: list[tuple[Tiers, list[Framing]]], peers: Sequence[Peer]) -> None:
    work = corpus.root.parent
    simulations = [Simulation(tiers, framings) for tiers, framings in sweep]
    stamps: dict[Path, tuple[int, int]] = {}
    read = 0
    for day in range(corpus.days):
        corpus.advance(day)
        for path in files_of(corpus.root):
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamps.get(path) == stamp:
                continue
            stamps[path] = stamp
            data = path.read_bytes()
            read += len(data)
            for simulation in simulations:
                simulation.add(data)
        for simulation in simulations:
            simulation.finish()
        for peer in peers:
            peer.run(work, corpus.root, day, day == corpus.days - 1)
        print(f"day {day}: {time.process_time():.0f} s", file=sys.stderr)
    rows = [row for simulation in simulations for row in simulation.rows()]
    table(f"{corpus.days} versions, {read / 1e6:.0f} MB of changed files read", HEADER, rows)
    if peers:
        table("The same by others", ("program", "stored MB"), ((p.name, f"{p.stored(work) / 1e6:.1f}") for p in peers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORKDIR")
    parser.add_argument("--tree", type=Path, action="append", help="a tree of small files (repeatable)")
    parser.add_argument("--only", choices=("first", "versions"))
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--scale", type=float, default=1.0, help="of the 30-version corpus; 1 is about 400 MB a day")
    parser.add_argument("--peers", action="store_true", help="back the versions up with restic and borg too")
    arguments = parser.parse_args()
    trees: list[Path] = arguments.tree or [Path(sysconfig.get_path("stdlib"))]
    if arguments.only != "versions":
        for tree in trees:
            measure_first(tree, first_sweep())
    if arguments.only != "first":
        peers = [peer for peer in PEERS if shutil.which(peer.program)] if arguments.peers else []
        corpus = Corpus(arguments.work.resolve() / "corpus", trees[0], arguments.scale, arguments.days)
        measure_versions(corpus, version_sweep(), peers)


if __name__ == "__main__":
    main()
