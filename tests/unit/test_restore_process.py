"""The processes that write small files: used, and survived when they die."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from cas.tasks.requests import RestoreRequest, RestoreResult
from cas.tasks.restore import restore
from cas.tasks.restore_jobs import Job
from cas.tasks.restore_process import WriterProcess
from tests.restoring import Lab, below, picture, use_processes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Directories of small files, some with two names."""
    top = tmp_path / "source"
    for number in range(300):
        folder = top / f"{number % 7}" / f"{number % 45}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"file {number}"
        file.write_bytes(os.urandom(number * 37))
        file.chmod(0o4755 if number % 50 == 0 else 0o640)
        if number % 40 == 0:
            (top / f"again {number}").hardlink_to(file)
    return top


def _restore(lab: Lab, source: Path, target: Path) -> RestoreResult:
    result = restore(lab.repository, lab.protect(source), RestoreRequest(target=target))
    assert picture(below(target, source)) == picture(source)
    assert result.files + result.others == 300 + 8
    assert result.warnings == []
    with pytest.raises(ChildProcessError):  # nobody is left, neither running nor as a zombie
        os.waitpid(-1, os.WNOHANG)
    return result


def test_they_write_every_new_file(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_processes(monkeypatch, use=True)
    written = []
    write = WriterProcess.write

    def counted(self: WriterProcess, jobs: Sequence[Job]) -> set[int]:
        done = write(self, jobs)
        written.append(len(done))
        return done

    monkeypatch.setattr(WriterProcess, "write", counted)
    _restore(Lab(tmp_path / "cache"), source, tmp_path / "target")
    assert sum(written) == 300
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("when", [0, 1])
def test_one_that_dies_costs_nothing_but_time(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    use_processes(monkeypatch, use=True)
    monkeypatch.setattr("cas.tasks.restore_feed._BATCH_JOBS", 20)
    write = WriterProcess.write
    orders: dict[int, int] = {}

    def murdered(self: WriterProcess, jobs: Sequence[Job]) -> set[int]:
        orders[self._pid] = orders.get(self._pid, 0) + 1
        if orders[self._pid] == when + 1:
            os.kill(self._pid, signal.SIGKILL)
        return write(self, jobs)

    monkeypatch.setattr(WriterProcess, "write", murdered)
    _restore(Lab(tmp_path / "cache"), source, tmp_path / "target")
    assert max(orders.values()) > when + 1


def test_the_system_has_no_more_processes(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_processes(monkeypatch, use=True)
    fork = os.fork
    forked: list[bool] = []

    def scarce() -> int:
        if forked:
            raise BlockingIOError(11, os.strerror(11))
        forked.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", scarce)
    _restore(Lab(tmp_path / "cache"), source, tmp_path / "target")
