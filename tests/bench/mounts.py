"""Times the drives of backdrive and restic on the same points, in turn, and prints medians and ratios.

Beside them a trivial file system in memory over the same binding (`tests.bench.drive_ceiling`), which shows the same
names and as many bytes: no drive could be faster.

    python -m tests.bench.mounts SOURCE [--work DIR] [--runs N] [--big MIB]

SOURCE is a real tree (a copy of /usr/share on a tmpfs, say); a file of random bytes is made beside it. Every row has a
mount of its own, with the page cache dropped before. It passes or fails nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mount.fuse_mount import raise_read_ahead
from tests.bench.peers import (
    Backdrive,
    Figures,
    Peer,
    Restic,
    arguments_of,
    random_file,
    say_what_runs,
    show,
    timed,
)

_RANDOM_READS = """
import os, random, sys
file = os.open(sys.argv[1], os.O_RDONLY)
size, places = os.fstat(file).st_size, random.Random(int(sys.argv[2]))
for _ in range(500):
    assert len(os.pread(file, 65536, places.randrange(0, size - 65536))) == 65536
"""
ROWS = ("find -ls", "2 GiB in sequence", "4,000 small files", "500 random reads of 64 KiB")


class Ceiling(Peer):
    """The trivial file system."""

    name = "ceiling"

    def __init__(self, place: Path, tree: Path, big: int) -> None:
        super().__init__(place)
        self._shape = [str(tree), "--big", str(big)]

    def mount(self, target: Path) -> Callable[[], None]:
        command = [sys.executable, "-m", "tests.bench.drive_ceiling", *self._shape, "--serve", "ours", str(target)]
        process = subprocess.Popen(command, env=self.environment)
        while not os.path.ismount(target):
            if process.poll() is not None:
                raise SystemExit("the trivial file system did not mount")
            time.sleep(0.05)
        (target / "big.bin").stat()
        raise_read_ahead(str(target), 1024)

        def stop() -> None:
            subprocess.run(["fusermount3", "-u", str(target)], check=True)
            process.wait()

        return stop


def drop_page_cache() -> None:
    """So that a drive is read and not the kernel's memory of it; only root may."""
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def find_below(mounted: Path, name: str) -> Path:
    """The newest copy of the source in a mount of everything, whatever the program's layout."""
    for folder, directories, files in os.walk(mounted):
        if name in directories or name in files:
            return Path(folder) / name
    raise SystemExit(f"{name} is not in the mount at {mounted}")


def small_files(tree: Path) -> list[Path]:
    """4,000 files under 128 KiB, in the order of their names."""
    names = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in names if path.stat().st_size < 131072][:4000]


def command_of(row: str, seed: int, tree: Path, big: Path, mounted: Path, chosen: list[Path], work: Path) -> list[str]:
    """What is timed."""
    if row == ROWS[0]:
        return ["find", str(find_below(mounted, tree.name)), "-ls"]
    if row == ROWS[1]:
        return ["dd", f"if={find_below(mounted, big.name)}", "of=/dev/null", "bs=1M"]
    if row == ROWS[3]:
        return [sys.executable, "-c", _RANDOM_READS, str(find_below(mounted, big.name)), str(seed)]
    root, names = find_below(mounted, tree.name), work / "small.list"
    names.write_bytes(b"\0".join(bytes(root / path.relative_to(tree)) for path in chosen))
    return ["sh", "-c", f"xargs -0 cat < '{names}' > /dev/null"]


def measure(peers: list[Peer], tree: Path, big: Path, work: Path, runs: int) -> dict[str, dict[str, Figures]]:
    """Every row for every program, one run of all after the other."""
    rows: dict[str, dict[str, Figures]] = {}
    chosen = small_files(tree)

    def note(row: str, peer: Peer, seconds: float) -> None:
        rows.setdefault(row, {}).setdefault(peer.name, Figures()).seconds.append(seconds)

    for turn in range(runs):
        for row in ROWS:
            for peer in peers:
                target = work / "mounted"
                target.mkdir(exist_ok=True)
                drop_page_cache()
                start = time.perf_counter()
                stop = peer.mount(target)
                assert stop is not None
                note("open the drive", peer, time.perf_counter() - start)
                try:
                    command = command_of(row, random.Random(turn).randrange(1 << 30), tree, big, target, chosen, work)
                    note(row, peer, timed(command, peer.environment)[0])
                finally:
                    stop()
    return rows


def main() -> None:
    """Parse, measure, print."""
    arguments = arguments_of(__doc__ or "", 5)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if shutil.which("restic") is None:
        raise SystemExit("restic is not installed: there is nothing to compare with")
    peers: list[Peer] = [kind(work / kind.name) for kind in (Backdrive, Restic)]
    say_what_runs()
    source, big = arguments.source.resolve(), random_file(work / "big.bin", arguments.big)
    for peer in peers:
        peer.reset()
        for what in (big, source):
            timed(peer.backup(what), peer.environment)
    ceiling = Ceiling(work / "ceiling", source, arguments.big)
    rows = measure([*peers, ceiling], source, big, work, arguments.runs)
    show(f"drives, vaults in {work}", rows, peers)
    print("\n| work | ceiling | backdrive reaches |\n|---|---|---|")
    for row in ROWS[:3]:
        least, ours = (statistics.median(rows[row][name].seconds) for name in (ceiling.name, Backdrive.name))
        print(f"| {row} | {least:.2f} | {least / ours:.0%} |")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
