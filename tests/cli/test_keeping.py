"""Deleting, taking back, retention and collect on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import RunCli


def ids(run_cli: RunCli, *options: str) -> list[str]:
    return [point["id"] for point in run_cli("points", *options, "--json", expect=0).json]


def size_of(vault: Path, folder: str = "data") -> int:
    return sum(path.stat().st_size for path in vault.glob(f"repositories/*/{folder}/*/*"))


@pytest.fixture
def three(vault: Path, tree: Path, run_cli: RunCli) -> list[str]:
    """Three points; a file of 200 kB is only in the first."""
    (tree / "big").write_bytes(os.urandom(200_000))
    run_cli("backup", tree, expect=0)
    (tree / "big").unlink()
    for text in ("second", "third"):
        (tree / "a.txt").write_text(text)
        run_cli("backup", tree, expect=0)
    return ids(run_cli)


def test_a_deleted_point_can_be_taken_back(three: list[str], vault: Path, run_cli: RunCli) -> None:
    told = run_cli("points", "delete", three[0][:10], expect=0).stdout
    assert three[0][:8] in told and "taken back until" in told
    assert ids(run_cli) == three[1:]
    assert ids(run_cli, "--deleted") == three[:1]
    assert three[0][:8] in run_cli("points", "--deleted", expect=0).stdout
    run_cli("collect", "--grace", "0", "--max-unused", "0", expect=0)
    run_cli("check", "--read-data", "100", expect=0)
    run_cli("points", "undelete", three[0][:10], expect=0)
    assert ids(run_cli) == three
    assert ids(run_cli, "--deleted") == []
    assert len(run_cli("cat", three[0], vault.parent / "tree/big", expect=0).raw) == 200_000
    run_cli("points", "undelete", three[0], expect=11)
    run_cli("points", "delete", "ffff", expect=11)


def test_purging_needs_its_phrase_and_frees_space(three: list[str], vault: Path, run_cli: RunCli) -> None:
    before = size_of(vault)
    run_cli("points", "delete", three[0], "--purge-now", expect=2)
    run_cli("points", "delete", three[0], "--purge-now", "--yes-purge", "another", expect=2)
    assert ids(run_cli) == three
    run_cli("points", "delete", three[0], "--purge-now", "--yes-purge", three[0][:8], expect=0)
    dry = run_cli("collect", "--dry-run", "--max-unused", "0", "--json", expect=0).json
    assert (dry["purged"], dry["freed"]) == (1, 0) and dry["condemned"] > 0
    assert size_of(vault) == before
    first = run_cli("collect", "--max-unused", "0", "--json", expect=0).json
    assert (first["purged"], first["freed"]) == (1, 0)
    assert first["waiting"][0]["packs"] == first["condemned"] > 0
    assert "wait: condemned lately" in run_cli("collect", expect=0).stdout
    second = run_cli("collect", "--grace", "0", "--json", expect=0).json
    assert second["freed"] > 200_000 and second["waiting"] == []
    assert size_of(vault) < before - 190_000
    run_cli("points", "undelete", three[0], expect=11)
    run_cli("check", "--read-data", "100", expect=0)
    assert ids(run_cli) == three[1:]


def test_a_deleted_point_is_purged_at_once_too(three: list[str], run_cli: RunCli) -> None:
    run_cli("points", "delete", three[0], three[1], expect=0)
    phrase = f"{three[0][:8]} and 1 more"
    run_cli("points", "delete", three[0], three[1], "--purge-now", "--yes-purge", phrase, expect=0)
    assert run_cli("collect", "--grace", "0", "--json", expect=0).json["purged"] == 2
    assert ids(run_cli, "--deleted") == []
    run_cli("check", expect=0)


def test_a_policy_is_set_shown_and_applied(three: list[str], tree: Path, run_cli: RunCli) -> None:
    assert "every point is kept" in run_cli("retention", "show", expect=0).stdout
    run_cli("retention", "apply", expect=2)
    run_cli("retention", "set", expect=2)
    run_cli("retention", "set", "--daily", "3", expect=2)
    run_cli("retention", "set", "--daily", "7", "--zone", "Nowhere/None", expect=2)
    run_cli("retention", "set", "--daily", "7", "--zone", "Europe/Berlin", expect=0)
    assert run_cli("retention", "show", "--json", expect=0).json == {"daily": "7", "zone": "Europe/Berlin"}
    assert "0 points deleted, 3 kept" in run_cli("retention", "apply", expect=0).stdout
    kept = run_cli("points", "--json", expect=0).json[0]["retention"]
    assert (kept["tiers"], kept["keep"]) == (["daily"], True)
    assert "daily" in run_cli("points", expect=0).stdout
    # One point a day, at a time that is over or to come: the others go, but for a tagged one.
    assert "no date" in run_cli("backup", tree, "--tag", "retain-until=garbage", expect=2).stderr
    run_cli("backup", tree, "--tag", "retain-until=always", expect=0)
    run_cli("backup", tree, expect=0)
    run_cli("retention", "set", "--weekly", "4 on mon,tue,wed,thu,fri,sat,sun", "--zone", "UTC", expect=0)
    gone = run_cli("retention", "apply", "--dry-run", "--json", expect=0).json
    assert gone["kept"] == 3 and len(ids(run_cli)) == 5
    assert "2 points deleted, 3 kept" in run_cli("retention", "apply", expect=0).stdout
    left = run_cli("points", "--json", expect=0).json
    assert [point["retention"]["tiers"] for point in left] == [["weekly"], [], []]
    assert [point["retention"]["reason"] for point in left] == ["", "", "it is the newest"]
    assert ids(run_cli, "--deleted") == three[1:]
    assert "0 points deleted, 3 kept" in run_cli("retention", "apply", expect=0).stdout
    run_cli("points", "undelete", three[1], expect=0)
    # The only point of other paths is their newest, and stays though another was taken since.
    run_cli("backup", tree / "a.txt", expect=0)
    run_cli("backup", tree, expect=0)
    run_cli("retention", "apply", expect=0)
    assert sorted(len(point["paths"][0]) for point in run_cli("points", "--json", expect=0).json) == sorted(
        [len(str(tree / "a.txt")), *[len(str(tree))] * 3]
    )
