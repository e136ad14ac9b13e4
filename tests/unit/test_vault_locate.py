"""Finding and making vaults by what a person types."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cas.errors import InvalidRequest, VaultMissing
from cas.vault.locate import canonical_url, create_vault, open_vault

HEADER = b'{"format": 1}'


@pytest.mark.parametrize("form", ["path", "slash", "url", "localhost", "FILE", "short", "relative", "encoded"])
def test_every_form_names_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "a b%é" / "vault"
    url = place.as_uri()
    typed = {
        "path": str(place),
        "slash": f"{place}/",
        "url": url,
        "localhost": url.replace("file://", "file://LocalHost"),
        "FILE": url.replace("file:", "FILE:"),
        "short": url.replace("file://", "file:"),
        "relative": "a b%é/../a b%é/vault",
        "encoded": url.replace("v", "%76").replace("%C3%A9", "é"),
    }[form]
    made = create_vault(typed, HEADER)
    assert made.url == canonical_url(typed) == url == canonical_url(canonical_url(typed))
    assert (place / "vault.json").read_bytes() == HEADER
    monkeypatch.chdir("/")  # a relative path is resolved once
    assert made.get("vault.json") == HEADER
    assert open_vault(url).get("vault.json") == HEADER
    assert sorted(os.listdir(place)) == ["tmp", "vault.json"]


def test_odd_directories_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("~", "home:2024", "%41", "a?b#c", "host:/x", "http"):
        create_vault(path, HEADER)
        assert open_vault(path).url == canonical_url(path)
        assert (tmp_path / path / "vault.json").exists()
        assert open_vault(canonical_url(path)).get("vault.json") == HEADER


@pytest.mark.skipif(sys.platform == "win32", reason="names are bytes on POSIX")
def test_a_path_need_not_be_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    url = create_vault(path, HEADER).url
    assert url.endswith("/%FF%FE")
    assert open_vault(url).get("vault.json") == HEADER


def test_a_drive_is_no_scheme() -> None:
    for path in ("C:\\vaults\\x", "c:/vaults/x", "C://x"):
        assert canonical_url(path).startswith("file:///")
        with pytest.raises(VaultMissing):
            open_vault(path)


@pytest.mark.parametrize(
    "url, reason",
    [
        ("azure://account/container", "not supported yet"),
        ("AZURE://account/container", "not supported yet"),
        ("https://account.blob.core.windows.net/c?sig=SECRET", "not supported yet"),
        ("http://host/x", "no vaults of the kind http"),
        ("s3://SECRET@bucket", "no vaults of the kind s3"),
        ("sftp+x://host", r"no vaults of the kind sftp\+x"),
        ("file://host/x", "another computer"),
        ("file://relative", "another computer"),
        ("file:relative", "absolute"),
        ("file:", "absolute"),
        ("file://", "absolute"),
        ("file:///x?y", "query"),
        ("file:///x#y", "query"),
        ("file:///x%00y", "NUL"),
        ("x\0y", "NUL"),
        ("", "empty"),
    ],
)
def test_what_names_no_place_is_refused(url: str, reason: str) -> None:
    for use in (open_vault, canonical_url, lambda url: create_vault(url, HEADER)):
        with pytest.raises(InvalidRequest, match=reason) as caught:
            use(url)
        assert "SECRET" not in str(caught.value)


def test_only_vaults_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("absent", "", "file", "file/below"):
        with pytest.raises(VaultMissing):
            open_vault(str(tmp_path / path))
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_vault_is_not_made_twice(tmp_path: Path) -> None:
    create_vault(str(tmp_path), HEADER)
    for header in (HEADER, b"other"):
        with pytest.raises(InvalidRequest, match="already a vault"):
            create_vault(str(tmp_path), header)
    assert open_vault(str(tmp_path)).get("vault.json") == HEADER


def test_a_vault_is_not_made_among_other_things(tmp_path: Path) -> None:
    for foreign in ("x", "tmp"):  # a tmp that is no vault's
        place = tmp_path / foreign
        place.mkdir()
        (place / foreign).mkdir()
        (place / foreign / "notes.txt").touch()
        with pytest.raises(InvalidRequest, match="not empty and not a vault"):
            create_vault(str(place), HEADER)
        assert os.listdir(place) == [foreign]
    (tmp_path / "file").touch()
    for path in ("file", "file/below", "file/below/it"):
        with pytest.raises(InvalidRequest, match="not a directory"):
            create_vault(str(tmp_path / path), HEADER)


def test_an_empty_disk_and_a_killed_creation_are_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "123-0123456789abcdef").write_bytes(HEADER[:3])
    create_vault(str(tmp_path), HEADER)
    assert [entry.name for entry in open_vault(str(tmp_path)).list("")] == ["vault.json"]


def test_of_racing_creators_one_wins(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def create(number: int) -> int | None:
        barrier.wait()
        try:
            create_vault(str(tmp_path / "x" / "y"), b"%d" % number)
        except InvalidRequest as error:
            assert "already a vault" in str(error)
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(create, range(8)) if number is not None]
    assert [open_vault(str(tmp_path / "x" / "y")).get("vault.json")] == [b"%d" % number for number in won]
