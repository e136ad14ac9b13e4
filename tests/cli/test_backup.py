"""`backdrive backup` and `points`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import on_terminal, words
from tests.conftest import RunCli


def last_job(home: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(max((home / "jobs").iterdir(), key=os.path.getmtime).read_bytes())
    return document


def test_a_backup_tells_one_line_and_keeps_a_record(run_cli: RunCli, vault: Path, tree: Path, home: Path) -> None:
    done = run_cli("backup", tree, "--tag", "why=test", expect=0)
    assert done.stdout.count("\n") == 1 and done.stderr == "", "quiet in a pipe"
    assert "4 files" in done.stdout
    job = last_job(home)
    assert (job["kind"], job["vault"], job["outcome"], job["exit_code"]) == ("backup", "vault", "completed", 0)
    (point,) = run_cli("points", "--json", expect=0).json
    assert job["point"] == point["id"]
    assert job["point"][:8] in done.stdout
    assert (point["tags"], point["machine"], point["files"]) == ({"why": "test"}, "laptop", 4)
    assert point["paths"] == [str(tree)]


def test_progress_is_shown_on_a_terminal_and_wiped(vault: Path, tree: Path) -> None:
    code, shown = on_terminal([], "backup", str(tree))
    assert code == 0, shown
    assert "preparing" in shown or "transferring" in shown or "done" in shown
    assert "Point " in shown.rstrip().splitlines()[-1]


def test_no_progress_beside_json(vault: Path, tree: Path) -> None:
    code, shown = on_terminal([], "backup", str(tree), "--json")
    assert code == 0, shown
    assert json.loads(shown)["point"]["files"] == 4


def test_json_is_one_document(run_cli: RunCli, vault: Path, tree: Path) -> None:
    first = run_cli("backup", tree, "--json", expect=0)
    assert first.stderr == ""
    assert set(first.json) == {"point", "dry_run", "stats", "warnings"}
    assert (first.json["point"]["mode"], first.json["warnings"]) == ("full", [])
    second = run_cli("backup", tree, "--json", expect=0).json
    assert (second["point"]["mode"], second["point"]["parent"]) == ("incremental", first.json["point"]["id"])
    forced = run_cli("backup", tree, "--force-full", "--json", expect=0).json
    assert forced["point"]["mode"] == "full"
    assert forced["stats"]["opened"] == 4
    assert forced["stats"]["added_plain"] < 4096  # no data; the directories above may have changed meanwhile


def test_relative_paths_are_meant_from_here(run_cli: RunCli, vault: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(tree / "sub")
    point = run_cli("backup", "sub", "../way", expect=3, cwd=tree)
    assert "the link is protected, not what it leads to" in words(point.stderr)
    assert run_cli("points", "--json").json[0]["paths"] == [str(tree / "sub"), str(tmp_path / "way")]
    run_cli("backup", "way/", expect=0, cwd=tmp_path)
    assert run_cli("points", "--json").json[1]["paths"] == [str(tree / "sub")], "a slash at the end follows the link"


def test_a_missing_path_among_others_is_a_warning(run_cli: RunCli, vault: Path, tree: Path, home: Path) -> None:
    done = run_cli("backup", tree, tree / "none", tree.parent / "none", expect=3)
    assert f"warning: {tree.parent / 'none'}: " in done.stderr
    assert "warning" in done.stdout
    job = last_job(home)
    assert (job["outcome"], job["exit_code"]) == ("completed with warnings", 3)
    assert str(tree.parent / "none") in [warning["path"] for warning in job["warnings"]]
    shown = run_cli("backup", tree, tree.parent / "none", "--json", expect=3).json["warnings"]
    assert [warning["path"] for warning in shown] == [str(tree.parent / "none")]


def test_no_path_at_all_is_code_14(run_cli: RunCli, vault: Path, tmp_path: Path, home: Path) -> None:
    told = words(run_cli("backup", tmp_path / "none", tmp_path / "nothing", expect=14).stderr)
    assert "None of the paths" in told
    assert last_job(home)["outcome"] == "failed"
    assert run_cli("points", "--json", expect=0).json == []


def test_exclusion(run_cli: RunCli, vault: Path, tree: Path, tmp_path: Path) -> None:
    (tree / "cached").mkdir()
    (tree / "cached" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (tree / "cached" / "big").touch()
    (tree / "#odd").touch()
    patterns = tmp_path / "patterns"
    patterns.write_text("# a comment\n\nb.txt\n\\#odd\n")
    run_cli("backup", tree, "--exclude", "*utf8", "--exclude-from", patterns, "--exclude-caches", expect=0)
    (point,) = run_cli("points", "--json", expect=0).json
    assert point["excludes"] == ["*utf8", "b.txt", "\\#odd"]
    names = {entry["path"].removeprefix(f"{tree}/") for entry in run_cli("ls", "latest", tree, "-R", "--json").json}
    assert names == {"a.txt", "sub", "sub/link", "red\x1b[31m\nline", "cached", "cached/CACHEDIR.TAG"}


@pytest.mark.parametrize(
    "options", [["--exclude-from", "none"], ["--exclude-from", "latin"], ["--exclude", b"\xff"], ["--tag", b"a=\xff"]]
)
def test_patterns_that_cannot_be_used(
    run_cli: RunCli, vault: Path, tree: Path, tmp_path: Path, options: list[str | bytes]
) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    run_cli("backup", tree, *options, expect=2, cwd=tmp_path)


def test_a_dry_run_stores_nothing(run_cli: RunCli, vault: Path, tree: Path) -> None:
    before = sorted(path for path in vault.rglob("*") if path.is_file())
    assert run_cli("backup", tree, "--dry-run", expect=0).stdout.startswith("Dry run: 4 files")
    assert run_cli("backup", tree, "--dry-run", "--json", expect=0).json["point"] is None
    assert sorted(path for path in vault.rglob("*") if path.is_file()) == before


def test_the_vault_and_the_cache_do_not_protect_themselves(
    run_cli: RunCli, vault: Path, tree: Path, tmp_path: Path, home: Path
) -> None:
    run_cli("backup", tmp_path, expect=0)
    paths = [entry["path"] for entry in run_cli("ls", "latest", tmp_path, "-R", "--json").json]
    assert str(tree / "a.txt") in paths
    assert not [path for path in paths if path.startswith((f"{vault}/", f"{home}/cache/"))]
    assert [path for path in paths if path.startswith(f"{home}/registrations/")]


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_are_listed_newest_last(run_cli: RunCli, vault: Path, tree: Path) -> None:
    assert run_cli("points", expect=0).stdout == ""
    for _ in range(3):
        run_cli("backup", tree, expect=0)
    out = run_cli("points", expect=0).stdout.splitlines()
    assert out[0].split() == ["id", "time", "machine", "paths", "files", "size", "added", "mode"]
    found = run_cli("points", "--json", expect=0).json
    assert [line[:8] for line in out[1:]] == [point["id"][:8] for point in found]
    assert [point["started"] for point in found] == sorted(point["started"] for point in found)
    assert [line.split()[-1] for line in out[1:]] == ["full", "incremental", "incremental"]


def test_points_of_a_machine_or_a_path(run_cli: RunCli, vault: Path, tree: Path, tmp_path: Path) -> None:
    other = {"BACKDRIVE_HOME": str(tmp_path / "other")}
    run_cli("register", vault, "--machine", "server", expect=0, env=other)
    run_cli("backup", tree, expect=0)
    run_cli("backup", tree / "sub", expect=0, env=other)

    def machines(*options: str | Path) -> list[str]:
        return [point["machine"] for point in run_cli("points", *options, "--json", expect=0).json]

    assert machines() == ["laptop", "server"]
    assert machines("--machine", "server") == ["server"]
    assert machines("--path", tree) == ["laptop"]
    assert machines("--path", tree / "sub" / "b.txt") == ["laptop", "server"]
    assert machines("--path", f"{tree}x") == []


def test_a_damaged_point_does_not_hide_the_others(run_cli: RunCli, vault: Path, tree: Path, home: Path) -> None:
    points = [run_cli("backup", tree, "--json", expect=0).json["point"]["id"] for _ in range(2)]
    (damaged,) = vault.glob(f"repositories/*/points/{points[0]}")
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    run_cli("cache", "clear", expect=0)
    done = run_cli("points", "--json", expect=4)
    assert [point["id"] for point in done.json] == points[1:]
    assert points[0] in done.stderr
