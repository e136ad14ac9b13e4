"""`backdrive ls`, `find`, `cat`, `diff` and `versions`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import RunCli


def test_ls(run_cli: RunCli, tree: Path, point: str) -> None:
    names = run_cli("ls", point[:8], tree, expect=0).stdout.splitlines()
    assert names == ["a.txt", "not \\xff utf8", "red\\x1b[31m\\x0aline", "sub/"]
    long = run_cli("ls", "latest", tree / "sub", "-l", expect=0).stdout.splitlines()
    assert [line.split()[0] for line in long] == ["-rw-r--r--", "lrwxrwxrwx"]
    assert long[1].endswith("link -> b.txt")
    deep = run_cli("ls", "latest", tree, "-R", expect=0).stdout.splitlines()
    assert f"{tree}/sub/b.txt" in deep and f"{tree}/sub/" in deep
    assert run_cli("ls", "latest", expect=0).stdout == f"{tree.parts[1]}/\n"
    assert run_cli("ls", "latest", "sub", expect=0, cwd=tree).stdout == "b.txt\nlink\n"


def test_ls_as_json_keeps_every_name(run_cli: RunCli, tree: Path, point: str) -> None:
    found = {entry["path"]: entry for entry in run_cli("ls", "latest", tree, "-R", "--json", expect=0).json}
    assert {os.fsencode(path) for path in found} == {bytes(path) for path in tree.rglob("*")}
    link = found[f"{tree}/sub/link"]
    assert (link["type"], link["target"]) == ("symlink", "b.txt")
    first = found[f"{tree}/a.txt"]
    assert (first["type"], first["size"], first["mode"], first["uid"]) == ("file", 10, "0644", os.getuid())


@pytest.mark.parametrize(
    "arguments", [["ls", "ffffffff"], ["ls", "latest", "/none"], ["ls", "latest@nobody"], ["cat", "latest", "/none"]]
)
def test_what_is_not_there_is_code_11(run_cli: RunCli, point: str, arguments: list[str]) -> None:
    run_cli(*arguments, expect=11)


def test_cat(run_cli: RunCli, tree: Path, point: str) -> None:
    odd = bytes(tree) + b"/not \xff utf8"
    assert run_cli("cat", "latest", odd, expect=0).raw == b"\x00\xff" * 10
    assert run_cli("cat", f"latest@{'laptop'}", "a.txt", expect=0, cwd=tree).stdout == "the first\n"
    run_cli("cat", "latest", tree / "sub", expect=2)


def test_find_looks_into_every_point_and_shows_a_path_once(run_cli: RunCli, tree: Path, point: str) -> None:
    (tree / "a.txt").unlink()
    (tree / "c.TXT").touch()
    second = run_cli("backup", tree, "--json", expect=0).json["point"]["id"]
    found = {entry["path"]: entry["point"] for entry in run_cli("find", "*.txt", "--json", expect=0).json}
    assert found == {f"{tree}/sub/b.txt": second, f"{tree}/a.txt": point}
    lines = run_cli("find", "-i", "*.txt", "--point", "latest", expect=0).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == [f"{tree}/c.TXT", f"{tree}/sub/b.txt"]
    assert run_cli("find", "nothing", expect=0).stdout == ""
    assert run_cli("find", "a.txt", "--machine", "nobody", "--json", expect=0).json == []
    run_cli("find", "x", "--point", "none", expect=11)


def test_diff(run_cli: RunCli, tree: Path, point: str) -> None:
    assert run_cli("diff", point, "latest", expect=0).stdout == ""
    (tree / "a.txt").write_text("other")
    (tree / "sub" / "b.txt").unlink()
    (tree / "sub" / "new").touch()
    run_cli("backup", tree, expect=0)
    lines = run_cli("diff", point, "latest", expect=0).stdout.splitlines()
    assert {f"M  {tree}/a.txt", f"-  {tree}/sub/b.txt", f"+  {tree}/sub/new"} <= set(lines)
    found = run_cli("diff", point, "latest", tree / "sub", "--json", expect=0).json
    assert {(entry["change"], Path(entry["path"]).name) for entry in found} >= {("removed", "b.txt"), ("added", "new")}
    assert [entry["after"] for entry in found if entry["change"] == "removed"] == [None]


def test_versions(run_cli: RunCli, tree: Path, point: str) -> None:
    run_cli("backup", tree, expect=0)
    (tree / "a.txt").write_text("something else")
    run_cli("backup", tree, expect=0)
    found = run_cli("versions", tree / "a.txt", "--json", expect=0).json
    assert [(version["size"], len(version["points"])) for version in found] == [(10, 2), (14, 1)]
    assert found[0]["points"][0]["id"] == point
    lines = run_cli("versions", "a.txt", expect=0, cwd=tree).stdout.splitlines()
    assert len(lines) == 3 and lines[1].split()[4] == "2"
    run_cli("versions", tree / "never", expect=11)
    run_cli("versions", tree / "a.txt", "--machine", "nobody", expect=11)
