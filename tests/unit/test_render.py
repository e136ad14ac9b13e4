"""What a person sees of sizes, paths, columns and progress."""

from __future__ import annotations

import pytest

from cas.events import Progress
from cli import render


@pytest.mark.parametrize(
    "count, shown",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10_240, "10.0 KiB"),
        (102_400, "100 KiB"),
        (1 << 20, "1.00 MiB"),
        ((1 << 30) - 1, "1.00 GiB"),
        (5 << 50, "5.00 PiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_sizes_have_three_digits(count: int, shown: str) -> None:
    assert render.size(count) == shown


def test_no_name_moves_the_cursor() -> None:
    assert render.path("/grüße/文".encode()) == "/grüße/文"
    assert render.path(b"/a\x1b[2J\n\xff") == "/a\\x1b[2J\\x0a\\xff"
    assert render.path("\u202e".encode()) == "\\u202e"
    assert render.path("\U000e0001".encode()).isascii()


def test_json_paths_can_be_undone() -> None:
    name = bytes(range(1, 256))
    assert render.text(name).encode("utf-8", "surrogateescape") == name


def test_columns_are_aligned() -> None:
    rows = [("id", "size"), ("a", "1"), ("abc", "1000")]
    assert list(render.columns(rows, right=(1,))) == ["id   size", "a       1", "abc  1000"]
    assert list(render.columns([])) == []


def test_times_are_of_the_place() -> None:
    assert render.time(1_763_800_000_000_000_000, 3600) == "2025-11-22 09:26:40"
    assert render.iso_time(1_763_800_000_000_000_001) == "2025-11-22T08:26:40.000000001Z"
    assert render.iso_time(-1) == "1969-12-31T23:59:59.999999999Z"


def test_progress_tells_what_is_known() -> None:
    assert render.counts(Progress(files=1, size=2048), 0.5) == "1 file, 2.00 KiB"
    known = Progress(files=2_000, size=100 << 20, added=1 << 20, total_size=400 << 20)
    assert render.counts(known, 10) == "2,000 files, 100 MiB of 400 MiB (25 %), 10.0 MiB/s, 1.00 MiB new, 00:30 left"
    slow = Progress(size=1, total_size=10_000)
    assert render.counts(slow, 2).endswith("5:33:18 left")
    assert render.counts(Progress(files=3, read=1 << 20), 0) == "3 files, 1.00 MiB"
    assert "left" not in render.counts(Progress(size=5, total_size=5), 2)
    assert "%" not in render.counts(Progress(size=5, total_size=0), 2)
