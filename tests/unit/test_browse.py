"""Looking into points: walk, resolve, ls, find, cat, diff, versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cas.errors import InvalidRequest, PathNotFound, PointNotFound
from cas.model import Extra, NodeKind, Owner, Point
from cas.repository import Problems
from cas.store.reader import Reader
from cas.tasks import browse
from cas.tasks.browse import Change, ChangeKind
from tests.restoring import Lab, Made, made_directory, made_link


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "cache")


@pytest.fixture
def reader(lab: Lab) -> Reader:
    return lab.repository.reader()


@pytest.fixture
def point(lab: Lab) -> Point:
    inner = made_directory({b"Report.TXT": Made(data=b"report"), b"\xff": Made(data=b"bytes")})
    return lab.made(
        {
            b"a": made_directory({b"docs": inner, b"link": made_link(b"docs")}),
            b"a.txt": Made(data=b"a"),
            b"pipe": Made(NodeKind.FIFO),
        }
    )


def paths(entries: object) -> list[bytes]:
    return [path for path, *_ in entries]  # type: ignore[attr-defined]


def test_walk_gives_each_directory_before_what_is_in_it(reader: Reader, point: Point) -> None:
    everything = [b"/", b"/a", b"/a/docs", b"/a/docs/Report.TXT", b"/a/docs/\xff", b"/a/link", b"/a.txt", b"/pipe"]
    assert paths(browse.walk(reader, point)) == everything
    assert paths(browse.walk(reader, point, b"//a/./docs/")) == everything[2:5]
    assert paths(browse.walk(reader, point, b"/pipe")) == [b"/pipe"]


def test_resolve_follows_no_link(reader: Reader, point: Point) -> None:
    assert browse.resolve(reader, point, b"/a/docs/\xff")[0].size == 5
    assert browse.resolve(reader, point, b"/")[0].is_directory
    for path in (b"/b", b"/a/link/Report.TXT", b"/a.txt/x", b"/a/..", b"/a/docs/report.txt"):
        with pytest.raises(PathNotFound):
            browse.resolve(reader, point, path)


def test_the_root_has_the_attributes_that_the_point_keeps(lab: Lab, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    point = lab.protect(tmp_path / "source")
    node, owner = browse.resolve(reader, point, b"/")
    assert (node.mode, node.content, owner.uid) == (os.stat("/").st_mode & 0o7777, point.root, 0)


def test_ls(reader: Reader, point: Point) -> None:
    assert paths(browse.ls(reader, point)) == [b"/a", b"/a.txt", b"/pipe"]
    assert paths(browse.ls(reader, point, b"/a")) == [b"/a/docs", b"/a/link"]
    assert paths(browse.ls(reader, point, b"/a/link")) == [b"/a/link"]
    assert paths(browse.ls(reader, point, b"/a", recursive=True)) == [
        b"/a/docs",
        b"/a/docs/Report.TXT",
        b"/a/docs/\xff",
        b"/a/link",
    ]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", [b"/a.txt"]),
        ("a", [b"/a"]),
        ("?", [b"/a", b"/a/docs/\xff"]),
        ("[!a]*", [b"/a/docs", b"/a/docs/Report.TXT", b"/a/docs/\xff", b"/a/link", b"/pipe"]),
        ("/a/*", [b"/a/docs", b"/a/link"]),
        ("/*/docs", [b"/a/docs"]),
        ("docs/*.TXT", [b"/a/docs/Report.TXT"]),
        ("/docs/*", []),
        ("/**/Report.TXT", [b"/a/docs/Report.TXT"]),
        ("/a/**", [b"/a", b"/a/docs", b"/a/docs/Report.TXT", b"/a/docs/\xff", b"/a/link"]),
        ("report.txt", []),
    ],
)
def test_find(reader: Reader, point: Point, pattern: str, found: list[bytes]) -> None:
    assert paths(browse.find(reader, point, pattern)) == found


def test_find_in_any_case_and_below(reader: Reader, point: Point) -> None:
    assert paths(browse.find(reader, point, "report.*", ignore_case=True)) == [b"/a/docs/Report.TXT"]
    assert paths(browse.find(reader, point, "*", b"/a/docs")) == [b"/a/docs", b"/a/docs/Report.TXT", b"/a/docs/\xff"]


def test_cat(lab: Lab, reader: Reader, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    large = os.urandom(3_000_000)
    (source / "large").write_bytes(large)
    with open(source / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(500_000)
        file.write(b"data")
    (source / "empty").touch()
    (source / "link").symlink_to("large")
    point = lab.protect(source)
    for name in ("large", "sparse", "empty"):
        parts: list[bytes] = []
        size = browse.cat(reader, point, os.fsencode(source / name), lambda part, to=parts: to.append(bytes(part)))  # type: ignore[misc]
        assert b"".join(parts) == (source / name).read_bytes()
        assert size == (source / name).stat().st_size
    for name in ("", "link"):
        with pytest.raises(InvalidRequest):
            browse.cat(reader, point, os.fsencode(source / name), len)


def told(changes: object) -> list[tuple[bytes, str]]:
    return [(change.path, change.kind.value) for change in changes]  # type: ignore[attr-defined]


def test_diff(lab: Lab, reader: Reader) -> None:
    same = made_directory({b"%d" % number: Made(data=b"x") for number in range(50)})
    before = lab.made(
        {
            b"content": Made(data=b"1"),
            b"gone": made_directory({b"inside": Made()}),
            b"link": made_link(b"x"),
            b"mode": Made(data=b"1"),
            b"owner": Made(data=b"1"),
            b"same": same,
            b"type": made_directory({b"inside": Made()}),
            b"xattr": Made(),
        }
    )
    after = lab.made(
        {
            b"content": Made(data=b"2"),
            b"link": made_link(b"y"),
            b"mode": Made(data=b"1", mode=0o600),
            b"new": made_directory({b"inside": Made()}),
            b"owner": Made(data=b"1", owner=Owner(7, 7)),
            b"same": same,
            b"type": Made(),
            b"xattr": Made(extra=Extra(xattrs={b"user.x": b"y"})),
        }
    )
    reader.counts.misses = 0
    assert told(browse.diff(reader, before, after)) == [
        (b"/content", "content"),
        (b"/gone", "removed"),
        (b"/gone/inside", "removed"),
        (b"/link", "content"),
        (b"/mode", "metadata"),
        (b"/new", "added"),
        (b"/new/inside", "added"),
        (b"/owner", "metadata"),
        (b"/type", "type"),
        (b"/type/inside", "removed"),
        (b"/xattr", "metadata"),
    ]
    assert told(browse.diff(reader, before, after, b"/mode")) == [(b"/mode", "metadata")]
    assert told(browse.diff(reader, before, after, b"/new")) == [(b"/new", "added"), (b"/new/inside", "added")]
    assert list(browse.diff(reader, before, before)) == []
    with pytest.raises(PathNotFound):
        list(browse.diff(reader, before, after, b"/never"))


def test_diff_enters_no_equal_directory(lab: Lab, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    same = made_directory({b"deep": made_directory({b"x": Made(data=b"x")})})
    before = lab.made({b"other": made_directory({b"x": Made(data=b"1")}), b"same": same})
    after = lab.made({b"other": made_directory({b"x": Made(data=b"2")}), b"same": same})
    entered = 0
    entries = reader.entries

    def counted(tree: object) -> object:
        nonlocal entered
        entered += 1
        return entries(tree)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "entries", counted)
    (change,) = browse.diff(reader, before, after)
    assert change == Change(b"/other/x", ChangeKind.CONTENT, change.before, change.after)
    assert entered == 4  # the roots and `other`, of both points


def test_versions(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    file = source / "file"
    path = os.fsencode(file)
    with pytest.raises(PointNotFound):
        browse.versions(lab.repository, None, path)
    points = []
    for content in ("one", "one", "two", None, "one"):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
            os.utime(file, ns=(1, len(content) * 1000 + ord(content[0])))
        points.append(lab.protect(source))
    versions = browse.versions(lab.repository, "here", path)
    assert [[point.id for point in version.points] for version in versions] == [
        [points[0].id, points[1].id, points[4].id],
        [points[2].id],
    ]
    assert (versions[0].first.id, versions[0].last.id, versions[1].node.size) == (points[0].id, points[4].id, 3)
    with pytest.raises(PathNotFound):
        browse.versions(lab.repository, None, b"/never")
    with pytest.raises(PointNotFound):
        browse.versions(lab.repository, "another machine", path)


def test_versions_go_on_past_damage(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    lab.protect(source)
    lab.damage("tree")
    problems = Problems()
    with pytest.raises(PathNotFound):
        browse.versions(lab.repository, None, os.fsencode(source / "file"), problems)
    assert len(problems.errors) == 1
