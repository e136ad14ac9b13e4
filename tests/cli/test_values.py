"""What options mean: sizes, and which part of `POINT:/folder` is the point."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cli.commands.mount import _point_and_folder
from cli.options import parse_size


@given(some.integers(0, 10**12), some.sampled_from(["", "K", "M", "G", "T", "P"]), some.sampled_from(["", "B", "iB"]))
def test_sizes_are_in_binary_units(number: int, unit: str, rest: str) -> None:
    size = number << 10 * "KMGTP".find(unit) + 10 if unit else number
    for text in (f"{number}{unit}{rest}", f" {number}{unit}{rest}".lower()):
        assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1M", "1 M", "1KK", "1E", "0x10", "\u0661M"])
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None


@given(
    some.sampled_from(["latest", "latest@box", "ab12", "2026-11-22T07:30", "2026-11-22 07:30:05", "::"]),
    some.lists(
        some.text(some.characters(exclude_characters="/\0"), min_size=1).filter(lambda part: part not in (".", ".."))
    ),
)
def test_a_point_and_a_folder_of_it(point: str, parts: list[str]) -> None:
    assert _point_and_folder(point) == (point, None)
    folder = "/" + "/".join(parts)
    assert _point_and_folder(f"{point}:{folder}") == (point, folder)
    assert _point_and_folder(f"{point}:{folder}/") == (point, os.path.normpath(folder))
