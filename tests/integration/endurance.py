"""Many readers on a drive while points come and go and their data is collected.

    python -m tests.integration.endurance DIRECTORY [--minutes N] [--readers N] [--cache-size MIB]

Makes a vault in DIRECTORY (empty, best on a tmpfs), mounts all its points, and lets processes compare random pieces of
random files with copies of what was protected, while the source changes and is protected again, and points are deleted
by hand and by retention, and collected, over and over. Ends with the number of comparisons and the drive's largest
resident memory; fails on a wrong byte, on any error, and where the drive takes more memory than `--cache-size` and
150 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PASSPHRASE: Final = "nobody keeps this one for long"
ROOT: Final = Path(__file__).resolve().parents[2]
_MORE_THAN_THE_CACHE: Final = 150  # MiB
_APPEARS_SECONDS: Final = 30.0
_MACHINE: Final = "host"
_TAG: Final = "shown=yes"  # of the points that the drive shows
_KEPT: Final = 5  # points
_HELD: Final = 6  # files that a reader has open


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did."""

    reads: int
    points: int
    collected: int
    peak: float  # MiB


class Endurance:
    """One run in a directory of its own."""

    def __init__(self, place: Path, cache_mib: int) -> None:
        self._source = place / "source"
        self._vault = place / "vault"
        self._drive = place / "drive"
        self._expected = place / "expected"
        self._results = place / "results"
        self._enough = place / "enough"
        self._cache_mib = cache_mib
        self._points: dict[str, str] = {}  # ids by folder, oldest first
        self._seen = {"latest"}
        self._random = random.Random(7)
        for directory in (self._source, self._drive, self._expected, self._results):
            directory.mkdir(parents=True)
        self._environment = {
            **os.environ,
            "BACKDRIVE_HOME": str(place / "home"),
            "BACKDRIVE_PASSPHRASE": PASSPHRASE,
            "PYTHONPATH": str(ROOT),
        }

    def command(self, *arguments: str) -> str:
        """Run backdrive; its standard output. Fails with what it said where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise SystemExit(f"backdrive {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def run(
        self, seconds: float, readers: int, turns: int = 1, mounted: Callable[[Path], None] = lambda _: None
    ) -> Outcome:
        """Everything, for so many seconds and at least so many turns; `mounted` is told where the drive is.

        Raises SystemExit where something is wrong.
        """
        self._make_source()
        self.command("vault", "create", str(self._vault))
        self.command("register", str(self._vault), "--machine", _MACHINE)
        self.command("retention", "set", "--daily", "7")
        self._protect()
        self._change_source(range(400))
        self._protect()
        mounted(self._drive)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(readers):
                processes.append(self._start_reader(number))
            outcome = self._turns(time.monotonic() + seconds, turns)
            self._enough.touch()
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            self.command("unmount", str(self._drive))
        results = [json.loads(path.read_bytes()) for path in self._results.iterdir()]
        faults = [result["fault"] for result in results if result["fault"]]
        if faults or any(codes) or len(results) < readers:
            raise SystemExit(f"readers failed: {codes} {faults[:5]}")
        if outcome.peak > self._cache_mib + _MORE_THAN_THE_CACHE:
            raise SystemExit(f"the drive took {outcome.peak:.0f} MiB with a cache of {self._cache_mib} MiB")
        self.command("check", "--read-data", "100")
        return Outcome(sum(result["reads"] for result in results), outcome.points, outcome.collected, outcome.peak)

    def _start_reader(self, number: int) -> subprocess.Popen[bytes]:
        arguments = [
            str(self._drive / _MACHINE),
            str(self._source),
            str(self._expected),
            str(self._results),
            str(number),
            str(self._enough),
        ]
        command = [sys.executable, "-m", "tests.integration.endurance", "reader", *arguments]
        return subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL)

    # --- what happens meanwhile ---

    def _turns(self, until: float, least: int) -> Outcome:
        """Change, protect, delete, collect, until it is enough."""
        pid = next(drive["pid"] for drive in json.loads(self.command("mounts", "--json")))
        points = collected = 0
        peak = 0.0
        while time.monotonic() < until or points < 3 * least:
            # Half of what a hidden point added is needed by the next one: when it goes, its packs are written anew.
            self._change_source(range(400))
            hidden = self._backup()
            self._change_source(range(200))
            self._protect()
            points += 3
            self._purge(hidden)
            self._backup()  # for retention to delete
            self.command("retention", "apply")
            if len(self._points) > _KEPT:
                self._delete([*self._points][2])  # the first two stay
            collected += self._collect()
            peak = _peak(pid)
        return Outcome(0, points, collected, peak)

    def _delete(self, folder: str) -> None:
        point = self._points.pop(folder)
        (self._expected / folder).rename(self._expected / f".{point}")
        shutil.rmtree(self._expected / f".{point}")
        self._purge(point)

    def _purge(self, point: str) -> None:
        self.command("points", "delete", point, "--purge-now", "--yes-purge", point[:8])

    def _collect(self) -> int:
        report: dict[str, Any] = json.loads(self.command("collect", "--max-unused", "0", "--grace", "0", "--json"))
        return int(report["deleted"])

    def _make_source(self) -> None:
        for number in range(400):
            self._write(f"{number % 17}/{number}", self._random.choice((900, 9_000, 90_000, 900_000)))
        self._write("large", 48 << 20)

    def _write(self, name: str, size: int) -> None:
        path = self._source / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self._random.randbytes(size))

    def _change_source(self, files: range) -> None:
        for number in self._random.sample(files, 40):
            self._write(f"{number % 17}/{number}", self._random.choice((900, 9_000, 90_000, 900_000)))
        with (self._source / "large").open("r+b") as file:
            file.seek(self._random.randrange(40 << 20))
            file.write(self._random.randbytes(5 << 20))

    def _backup(self, *options: str) -> str:
        return str(json.loads(self.command("backup", str(self._source), *options, "--json"))["point"]["id"])

    def _protect(self) -> None:
        """Take a point, and publish a copy of the source under the name of the point's folder in the drive."""
        point = self._backup("--tag", _TAG, "--tag", "retain-until=always")
        copy = self._expected / f".{point}"
        shutil.copytree(self._source, copy)
        if not os.path.ismount(self._drive):
            self.command("mount", str(self._drive), "--tag", _TAG, "--cache-size", f"{self._cache_mib}M")
        deadline = time.monotonic() + _APPEARS_SECONDS
        while True:
            new = set(os.listdir(self._drive / _MACHINE)) - self._seen
            if new:
                break
            if time.monotonic() > deadline:
                raise SystemExit("a new point does not appear in the drive")
            time.sleep(0.2)
        (folder,) = new
        self._seen.add(folder)
        self._points[folder] = point
        copy.rename(self._expected / folder)


def _peak(pid: int) -> float:
    """The most resident memory so far, in MiB."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# --- a reader ---------------------------------------------------------------------------------------------------------


class Reader:
    """Compares pieces of files in the drive with the copies, until it is enough."""

    def __init__(self, drive: Path, source: Path, expected: Path, seed: int) -> None:
        self._drive = drive
        self._inside = source.relative_to("/")
        self._expected = expected
        self._random = random.Random(seed)
        self._files: dict[str, list[str]] = {}
        self._held: list[tuple[int, int, str]] = []  # descriptors of the drive and of the copy, and the name
        self.reads = 0

    def run(self, enough: Path) -> None:
        """Goes on until that file is there. Raises AssertionError for a wrong byte, OSError for a call that failed."""
        while not enough.exists():
            point = self._random.choice([name for name in os.listdir(self._expected) if not name.startswith(".")])
            try:
                self._hold(point)
            except FileNotFoundError:
                # Deleted just now, so that no more of its files can be opened. What is open must go on.
                assert not (self._expected / point).exists(), f"{point} has lost a file"
            for there, copy, name in self._held:
                self._compare(there, copy, name)
            if len(self._held) > _HELD:
                there, copy, _ = self._held.pop(self._random.randrange(len(self._held)))
                os.close(there)
                os.close(copy)

    def _hold(self, point: str) -> None:
        """Open one more file of a point, in the drive and in the copy."""
        top = self._expected / point
        if point not in self._files:
            self._files[point] = [
                os.path.relpath(os.path.join(folder, name), top) for folder, _, names in os.walk(top) for name in names
            ]
        if not self._files[point]:
            raise FileNotFoundError
        name = self._random.choice(self._files[point])
        copy = os.open(top / name, os.O_RDONLY)
        try:
            there = os.open(self._drive / point / self._inside / name, os.O_RDONLY)
        except BaseException:
            os.close(copy)
            raise
        self._held.append((there, copy, f"{point}/{name}"))

    def _compare(self, there: int, copy: int, name: str) -> None:
        size = os.fstat(copy).st_size
        assert os.fstat(there).st_size == size, name
        offset = self._random.randrange(size)
        length = self._random.choice((1, 4096, 65536, 300_000))
        os.posix_fadvise(there, 0, 0, os.POSIX_FADV_DONTNEED)  # or the kernel would answer from its memory
        assert os.pread(there, length, offset) == os.pread(copy, length, offset), f"{name} at {offset}"
        self.reads += 1


def _read(arguments: list[str]) -> None:
    """The process of a reader: writes what came of it, and fails where something was wrong."""
    drive, source, expected, results, number, enough = arguments
    reader = Reader(Path(drive), Path(source), Path(expected), int(number))
    fault = ""
    try:
        reader.run(Path(enough))
    except (AssertionError, OSError) as error:
        fault = f"{type(error).__name__}: {error}"
    Path(results, number).write_text(json.dumps({"reads": reader.reads, "fault": fault}))
    sys.exit(bool(fault))


def main() -> None:
    """Parse and run."""
    if sys.argv[1:2] == ["reader"]:
        _read(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--cache-size", type=int, default=128, help="MiB")
    arguments = parser.parse_args()
    outcome = Endurance(arguments.directory.absolute(), arguments.cache_size).run(
        arguments.minutes * 60, arguments.readers
    )
    print(
        f"{outcome.reads:,} pieces compared and equal by {arguments.readers} readers in {arguments.minutes:g} minutes; "
        f"{outcome.points} points taken, {outcome.collected} packs collected meanwhile; "
        f"the drive's peak was {outcome.peak:.0f} MiB with a cache of {arguments.cache_size} MiB"
    )


if __name__ == "__main__":
    main()
