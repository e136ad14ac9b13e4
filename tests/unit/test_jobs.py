"""Job records: written at the start and at the end, readable whatever happened in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cas.agent import jobs
from cas.agent.home import Home
from cas.agent.jobs import EscapedPath, Outcome, job_path, read_jobs, recorded
from cas.errors import CacheUnusable, Damaged, Interrupted, NoSpace
from cas.events import Warning

START = 1_763_800_000_000_000_000


class Clock:
    """Ten seconds a look."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 10_000_000_000
        return self.now


def code_of(error: BaseException) -> int:
    return {NoSpace: 8, Interrupted: 130, KeyboardInterrupt: 130, Damaged: 4}.get(type(error), 1)


def record(home: Home, kind: str = "backup") -> Any:
    return recorded(home, kind, "vault", Clock(), code_of, 3)


def only(home: Home) -> dict[str, Any]:
    (path,) = home.jobs.iterdir()
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


@pytest.fixture
def place(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_job_that_completes(place: Home) -> None:
    with record(place) as notes:
        assert only(place)["outcome"] == "running"
        assert only(place)["finished"] is None
        notes.point = "p" * 32
        notes.stats = {"files": 3}
    found = only(place)
    assert found["outcome"] == "completed"
    assert (found["exit_code"], found["point"], found["stats"]) == (0, "p" * 32, {"files": 3})
    assert (found["started"], found["finished"]) == ("2025-11-22T08:26:50Z", "2025-11-22T08:27:00Z")
    assert next(place.jobs.iterdir()).name.startswith("20251122T082650Z-")
    assert next(place.jobs.iterdir()).stat().st_mode & 0o777 == 0o600


def test_warnings_are_kept_with_any_path(place: Home) -> None:
    with record(place) as notes:
        notes.warnings = [Warning("/ä".encode(), "vanished"), Warning(b"/a\\\xff", "busy: \udcff"), Warning(b"", "odd")]
    found = only(place)
    assert (found["outcome"], found["exit_code"], found["warning_count"]) == ("completed with warnings", 3, 3)
    assert [warning["path"] for warning in found["warnings"]] == ["/ä", {"path": "/a\\\\\\xff"}, ""]
    assert next(iter(read_jobs(place))).warnings[1].path == EscapedPath("/a\\\\\\xff")


def test_many_warnings_are_counted_and_not_all_kept(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_MOST_WARNINGS", 5)
    with record(place) as notes:
        notes.warnings = [Warning(b"/x", "gone")] * 8
    assert (only(place)["warning_count"], len(only(place)["warnings"])) == (8, 5)


@pytest.mark.parametrize(
    "error, outcome, code",
    [
        (NoSpace("vault", "/v"), "failed", 8),
        (ValueError("\udc80"), "failed", 1),
        (Interrupted("stop"), "cancelled", 130),
        (KeyboardInterrupt(), "cancelled", 130),
    ],
)
def test_a_job_that_fails(place: Home, error: BaseException, outcome: str, code: int) -> None:
    with pytest.raises(type(error)), record(place) as notes:
        notes.warnings.append(Warning(b"/x", "before it failed"))
        raise error
    found = only(place)
    assert (found["outcome"], found["exit_code"], found["warning_count"]) == (outcome, code, 1)
    assert found["message"]


def test_damage_found_is_a_failure_that_is_not_raised(place: Home) -> None:
    with record(place, "check") as notes:
        notes.error = Damaged("2 objects are damaged.")
    assert (only(place)["outcome"], only(place)["exit_code"]) == ("failed", 4)


def test_a_run_that_was_killed_is_recognised(place: Home) -> None:
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from cas.agent.home import Home\n"
        "from cas.agent.jobs import recorded\n"
        "with recorded(Home(Path(sys.argv[1])), 'backup', 'v', time.time_ns, lambda error: 1, 3):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, place.root], check=False)
    assert done.returncode == -9
    assert only(place)["outcome"] == "running"
    assert [job.outcome for job in read_jobs(place)] == [Outcome.KILLED]
    with record(place):
        assert [job.outcome for job in read_jobs(place)].count(Outcome.RUNNING) == 1


def test_the_last_ones_are_kept(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEEP", 4)
    clock = Clock()
    for number in range(7):
        with recorded(place, f"kind {number}", "vault", clock, code_of, 3):
            pass
    assert [job.kind for job in read_jobs(place)] == ["kind 3", "kind 4", "kind 5", "kind 6"]


def test_a_record_that_cannot_be_read_is_left_out(place: Home) -> None:
    for _ in range(2):
        with record(place):
            pass
    next(place.jobs.iterdir()).write_bytes(b'{"id":')
    assert len(list(read_jobs(place))) == 1
    assert list(read_jobs(Home(place.root / "nowhere"))) == []


def test_a_record_that_cannot_be_begun_stops_the_job(place: Home) -> None:
    place.root.write_text("a file")
    with pytest.raises(CacheUnusable, match="BACKDRIVE_HOME"), record(place):
        pytest.fail("it ran")


def test_a_record_that_cannot_be_ended_does_not_hide_how_the_job_ended(place: Home) -> None:
    with pytest.raises(NoSpace), record(place):
        for path in place.jobs.iterdir():
            path.unlink()
        place.jobs.rmdir()
        place.jobs.write_text("a file")
        raise NoSpace("vault", "/v")


@pytest.mark.parametrize("path", [b"/plain", "/grüße/文".encode(), b"/tab\there"])
def test_paths_that_are_text_stay_text(path: bytes) -> None:
    assert job_path(path) == os.fsdecode(path)
