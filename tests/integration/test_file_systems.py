"""What only shows on file systems of their own: device numbers that change hands, and times in whole seconds."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cas.ids import ChunkId
from cas.tasks.browse import resolve
from cas.tasks.requests import RestoreRequest
from cas.tasks.restore import restore
from cas.vault.memory import MemoryVault
from tests.engine import World, cheap_keys, make_world

pytestmark = pytest.mark.root


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    cheap_keys(monkeypatch)
    return make_world(MemoryVault(), tmp_path / "cache")


def _run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout.strip()


def _image(path: Path) -> Path:
    """An ext4 file system whose inodes have no room for fractions of seconds."""
    with path.open("wb") as file:
        file.truncate(8 << 20)
    _run("mkfs.ext4", "-q", "-I", "128", path)
    return path


@contextmanager
def _mounted(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """Each image on its directory, on loop devices in this order."""
    devices: list[str] = []
    try:
        for image, _ in pairs:
            devices.append(_run("losetup", "--find", "--show", image))
        for device, (_, place) in zip(sorted(devices), pairs, strict=True):
            assert device in devices
            _run("mount", device, place)
        yield
    finally:
        for _, place in pairs:
            subprocess.run(["umount", str(place)], check=False, capture_output=True)
        for device in devices:
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


def test_links_of_two_devices_that_swapped_numbers_stay_apart(world: World, tmp_path: Path) -> None:
    places = [tmp_path / "mnt" / name for name in "ab"]
    images = [_image(tmp_path / f"{name}.img") for name in "ab"]
    for place in places:
        place.mkdir(parents=True)
    with _mounted((images[0], places[0]), (images[1], places[1])):
        for place, text in zip(places, ("content a", "content b"), strict=True):
            (place / "one").write_text(text)
            (place / "out").mkdir()
            os.link(place / "one", place / "two")
            os.link(place / "one", place / "out" / "three")
        inodes = {(place / "one").stat().st_ino for place in places}
        assert len(inodes) == 1
        world.backup(tmp_path / "mnt", excludes=["out/"])
    with _mounted((images[1], places[1]), (images[0], places[0])):
        (places[1] / "one").write_text("changed b")
        point = world.backup(tmp_path / "mnt", excludes=["out/"]).point
    assert point is not None
    with world.open() as repository:
        restore(repository, point, RestoreRequest(items=[os.fsencode(tmp_path / "mnt")], target=tmp_path / "back"))
    back = tmp_path / "back" / "mnt"
    assert [(back / "a" / name).read_text() for name in ("one", "two")] == ["content a"] * 2
    assert [(back / "b" / name).read_text() for name in ("one", "two")] == ["changed b"] * 2
    assert (back / "b" / "one").samefile(back / "b" / "two")


def test_a_change_in_the_same_second_is_seen_where_times_are_whole_seconds(world: World, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    with _mounted((_image(tmp_path / "a.img"), place)):
        file = place / "file"
        time.sleep(1 - time.time() % 1)  # so that all of it happens in one second
        file.write_text("AAAA")
        time.sleep(0.1)
        world.backup(place)
        file.write_text("BBBB")
        assert file.stat().st_ctime_ns % 1_000_000_000 == 0
        time.sleep(1.2)
        point = world.backup(place).point
    assert point is not None
    with world.open() as repository:
        reader = repository.reader()
        node, _ = resolve(reader, point, os.fsencode(file))
        assert bytes(reader.chunk(ChunkId(node.content))) == b"BBBB"


def test_what_was_in_a_lost_pack_is_read_again(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"kept in the source" * 1000)
    world.backup(source)
    (pack,) = [entry.name for entry in world.vault.list("") if "/data/" in entry.name]
    world.vault.delete(pack)
    time.sleep(0.05)
    result = world.backup(source)
    assert [warning.reason for warning in result.warnings if "gone from the vault" in warning.reason]
    assert result.stats["opened"] == 1
    assert world.backup(source).stats["opened"] == 0
