"""Times backdrive, restic and borg on the same work, in turn, and prints medians and ratios.

    python -m tests.bench.peers SOURCE [--work DIR] [--runs N] [--big MIB]

SOURCE is a real tree (a copy of /usr/share on a tmpfs, say); a file of random bytes is made beside it. Vaults live in
--work (default /dev/shm). Peers that are not installed are left out. It passes or fails nothing. Drives are measured by
`tests.bench.mounts`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PASSPHRASE = "a benchmark needs no secret"


@dataclass
class Figures:
    """Medians come from these: seconds, and MiB of the largest process."""

    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0


_TOUCH = "import mmap; memory = mmap.mmap(-1, 5 << 30)\nfor at in range(0, 5 << 30, 4096): memory[at] = 1"


def touch_memory() -> None:
    """Write to 5 GiB of memory and free it, in a process of its own.

    On a virtual machine the host takes idle pages away, and whoever wants them first would pay for fetching them back.
    """
    subprocess.run([sys.executable, "-c", _TOUCH], check=True)


def timed(command: list[str], environment: dict[str, str], directory: Path | None = None) -> tuple[float, float]:
    """Run to the end; seconds and peak MiB of the process itself. Fails loudly."""
    touch_memory()
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}): {errors.decode(errors='replace')[-500:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def sampled_peak(command: list[str], environment: dict[str, str], directory: Path | None) -> float:
    """Peak MiB of a process and its children together, shared pages counted once. A run that is not timed."""
    process = subprocess.Popen(
        command, env=environment, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        total = 0
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with suppress(OSError):
            for pid in (str(process.pid), *children.read_text().split()):
                with suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
        peak = max(peak, total)
        time.sleep(0.02)
    return peak / 1024


def directory_size(path: Path) -> int:
    """Bytes of all files below."""
    return sum((Path(folder) / name).stat().st_size for folder, _, names in os.walk(path) for name in names)


class Peer:
    """One program. `place` is a directory of its own."""

    name = ""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.vault = place / "vault"
        self.environment = {**os.environ, "HOME": str(place)}

    def create(self) -> None:
        raise NotImplementedError

    def backup(self, source: Path) -> list[str]:
        raise NotImplementedError

    def restore(self, source: Path, target: Path) -> tuple[list[str], Path | None]:
        raise NotImplementedError

    def check(self) -> list[str]:
        raise NotImplementedError

    def mount(self, target: Path) -> Callable[[], None] | None:
        """Start a mount of everything; returns how to stop it. None where it has none."""
        return None

    def run(self, command: list[str]) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def reset(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.create()


class Backdrive(Peer):
    name = "backdrive"
    command = (sys.executable, "-m", "cli.main")

    def create(self) -> None:
        self.environment |= {
            "BACKDRIVE_HOME": str(self.place / "home"),
            "BACKDRIVE_PASSPHRASE": PASSPHRASE,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.run([*self.command, "vault", "create", str(self.vault)])
        self.run([*self.command, "register", str(self.vault), "--machine", "bench"])

    def backup(self, source: Path) -> list[str]:
        return [*self.command, "backup", str(source)]

    def restore(self, source: Path, target: Path) -> tuple[list[str], Path | None]:
        return [*self.command, "restore", "latest", str(source), "--to", str(target)], None

    def check(self) -> list[str]:
        return [*self.command, "check", "--read-data", "100"]

    def mount(self, target: Path) -> Callable[[], None] | None:
        self.run([*self.command, "mount", str(target)])
        return lambda: self.run([*self.command, "unmount", str(target)])


class Restic(Peer):
    name = "restic"

    def create(self) -> None:
        self.environment |= {"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": str(self.vault)}
        self.environment["RESTIC_CACHE_DIR"] = str(self.place / "cache")
        self.run(["restic", "init", "--repository-version", "2"])

    def backup(self, source: Path) -> list[str]:
        return ["restic", "backup", "--quiet", str(source)]

    def restore(self, source: Path, target: Path) -> tuple[list[str], Path | None]:
        return ["restic", "restore", "--quiet", "latest", "--target", str(target)], None

    def check(self) -> list[str]:
        return ["restic", "check", "--read-data"]

    def mount(self, target: Path) -> Callable[[], None] | None:
        process = subprocess.Popen(
            ["restic", "mount", str(target)], env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not os.path.ismount(target) and time.monotonic() < deadline:
            time.sleep(0.05)

        def stop() -> None:
            subprocess.run(["fusermount3", "-u", str(target)], check=False)
            process.wait()

        return stop


class Borg(Peer):
    name = "borg"

    def create(self) -> None:
        self.environment |= {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_BASE_DIR": str(self.place / "base"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self.archive = 0
        self.run(["borg", "init", "-e", "repokey-blake2", str(self.vault)])

    def backup(self, source: Path) -> list[str]:
        self.archive += 1
        return ["borg", "create", "--compression", "zstd,3", f"{self.vault}::a{self.archive}", str(source)]

    def restore(self, source: Path, target: Path) -> tuple[list[str], Path | None]:
        return ["borg", "extract", f"{self.vault}::a{self.archive}"], target

    def check(self) -> list[str]:
        return ["borg", "check", "--verify-data", str(self.vault)]


def measure_engine(peers: list[Peer], source: Path, work: Path, runs: int) -> dict[str, dict[str, Figures]]:
    """Full, unchanged and restore of one source, the programs in turn."""
    rows: dict[str, dict[str, Figures]] = {}

    def note(row: str, peer: Peer, seconds: float, peak: float) -> None:
        figures = rows.setdefault(row, {}).setdefault(peer.name, Figures())
        figures.seconds.append(seconds)
        figures.peak = max(figures.peak, peak)

    for turn in range(runs):
        # Whoever comes first pays for memory that the machine has not used for a while: take turns.
        peers = peers[turn % len(peers) :] + peers[: turn % len(peers)]
        for peer in peers:
            peer.reset()
            note("full backup", peer, *timed(peer.backup(source), peer.environment))
        for peer in peers:
            note("unchanged backup", peer, *timed(peer.backup(source), peer.environment))
        for peer in peers:
            target = work / "restored"
            target.mkdir()
            command, directory = peer.restore(source, target)
            note("restore", peer, *timed(command, peer.environment, directory))
            shutil.rmtree(target)
    for peer in peers:
        target = work / "restored"
        target.mkdir()
        command, directory = peer.restore(source, target)
        rows["restore"][peer.name].peak = sampled_peak(command, peer.environment, directory)
        shutil.rmtree(target)
        note("check, all data read", peer, *timed(peer.check(), peer.environment))
        rows.setdefault("size in the vault, MiB", {})[peer.name] = Figures([directory_size(peer.vault) / 1048576])
    return rows


def show(title: str, rows: dict[str, dict[str, Figures]], peers: list[Peer]) -> None:
    """A table in Markdown: medians, ratios against backdrive, peak memory."""
    names = [peer.name for peer in peers]
    print(f"\n### {title}\n\n| work | {' | '.join(names)} | best peer / backdrive | peak MiB |")
    print(f"|---|{'---|' * len(names)}---|---|")
    for row, by_peer in rows.items():
        medians = {name: statistics.median(by_peer[name].seconds) for name in names if name in by_peer}
        cells = [f"{medians[name]:.2f}" if name in medians else "" for name in names]
        others = [value for name, value in medians.items() if name != "backdrive"]
        ratio = f"{min(others) / medians['backdrive']:.2f}" if others and "backdrive" in medians else ""
        peaks = " / ".join(f"{by_peer[name].peak:.0f}" if name in by_peer else "" for name in names)
        print(f"| {row} | {' | '.join(cells)} | {ratio} | {peaks if any(f.peak for f in by_peer.values()) else ''} |")


def arguments_of(description: str, runs: int) -> argparse.Namespace:
    """What both benchmarks ask for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/backdrive-bench"))
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--big", type=int, default=2048, help="MiB of the random file")
    return parser.parse_args()


def say_what_runs() -> None:
    """Versions and machine."""
    for program in ("restic", "borg"):
        if shutil.which(program):
            version = subprocess.run(
                [program, "--version" if program == "borg" else "version"], capture_output=True, text=True, check=False
            )
            print(version.stdout.strip())
    print(f"{platform.platform()}, {os.cpu_count()} processors, Python {platform.python_version()}")


def random_file(path: Path, mebibytes: int) -> Path:
    """A file that nothing compresses."""
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))
    return path


def main() -> None:
    """Parse, measure, print."""
    arguments = arguments_of(__doc__ or "", 3)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    peers: list[Peer] = [
        kind(work / kind.name)
        for kind in (Backdrive, Restic, Borg)
        if kind is Backdrive or shutil.which(kind.name) is not None
    ]
    say_what_runs()
    source = arguments.source.resolve()
    show(f"{source.name}, vaults in {work}", measure_engine(peers, source, work, arguments.runs), peers)
    big = random_file(work / "big.bin", arguments.big)
    show(f"one random file of {arguments.big} MiB", measure_engine(peers, big, work, arguments.runs), peers)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
