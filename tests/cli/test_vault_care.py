"""`backdrive check`, `stats` and `cache`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.conftest import RunCli


def test_check_of_a_sound_vault(run_cli: RunCli, point: str, home: Path) -> None:
    assert run_cli("check", expect=0).stdout.startswith("No damage: 1 point,")
    found = run_cli("check", "--read-data", "100", "--json", expect=0).json
    assert (found["ok"], found["points"], found["problems"]) == (True, 1, [])
    assert found["packs_read"] == found["packs"] > 0
    job = json.loads(max((home / "jobs").iterdir(), key=os.path.getmtime).read_bytes())
    assert (job["kind"], job["outcome"]) == ("check", "completed")


def test_check_names_damage(run_cli: RunCli, vault: Path, point: str, home: Path) -> None:
    (pack,) = vault.glob("repositories/*/data/*/*")
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[60] ^= 1
    pack.write_bytes(data)
    done = run_cli("check", "--read-data", "100", expect=4)
    assert pack.name[:8] in done.stdout
    found = run_cli("check", "--read-data", "100", "--json", expect=4).json
    assert not found["ok"]
    assert any(point in problem["points"] and problem["files"] for problem in found["problems"])
    job = json.loads(max((home / "jobs").iterdir(), key=os.path.getmtime).read_bytes())
    assert (job["outcome"], job["exit_code"]) == ("failed", 4)


def test_stats(run_cli: RunCli, vault: Path, tree: Path, point: str) -> None:
    run_cli("backup", tree, expect=0)
    found = run_cli("stats", "--json", expect=0).json
    assert (found["points"], found["machines"]["laptop"]["points"]) == (2, 2)
    stored = [path for path in vault.glob("repositories/**/*") if path.is_file()]
    assert found["size"] == sum(path.stat().st_size for path in stored)
    assert sum(objects["count"] for objects in found["objects"].values()) == len(stored)
    assert found["size_of_all"] == 2 * found["machines"]["laptop"]["size"]
    out = run_cli("stats", expect=0).stdout
    assert "2 points" in out and "laptop" in out


def test_stats_of_nothing(run_cli: RunCli, vault: Path) -> None:
    assert run_cli("stats", "--json", expect=0).json["points"] == 0
    assert "0 points" in run_cli("stats", expect=0).stdout


def test_a_lost_cache_and_lost_segments_lose_nothing(
    run_cli: RunCli, vault: Path, tree: Path, point: str, home: Path
) -> None:
    cache = next((home / "cache").iterdir())
    run_cli("cache", "clear", expect=0)
    assert not cache.exists()
    assert run_cli("cat", "latest", tree / "a.txt", expect=0).stdout == "the first\n"
    for segment in vault.glob("repositories/*/index/*"):
        segment.unlink()
    run_cli("cache", "clear", expect=0)
    run_cli("cat", "latest", tree / "a.txt", expect=4)
    done = run_cli("cache", "rebuild", expect=0)
    assert "2 packs" in done.stdout
    assert run_cli("cat", "latest", tree / "a.txt", expect=0).stdout == "the first\n"


def test_a_cache_that_cannot_be_used_is_code_12(run_cli: RunCli, point: str, home: Path) -> None:
    cache = next((home / "cache").iterdir())
    run_cli("cache", "clear", expect=0)
    cache.write_text("a file in its place")
    assert "cache" in run_cli("points", expect=12).stderr
