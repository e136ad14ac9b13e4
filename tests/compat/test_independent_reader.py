"""`cas/FORMAT.md` suffices: a reader written from that page alone reads the frozen vault, every byte and attribute."""

from __future__ import annotations

import ast
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from pyfastcdc import FastCDC

from tests.compat import independent_reader
from tests.compat.independent_reader import DATA, FILE, BadVault, Entry, Reader

FROZEN = Path(__file__).parents[2] / "fixtures" / "vaults" / "v1"
EXPECTED: dict[str, Any] = json.loads((FROZEN / "expected.json").read_text())
ALLOWED = {"argon2", "blake3", "cryptography", "msgspec", "zstandard"}
FILE_TYPES = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)


@pytest.fixture(scope="module", params=["tables of packs", "index"])
def reader(request: pytest.FixtureRequest) -> Reader:
    reader = Reader(FROZEN / "vault", EXPECTED["passphrase"])
    if request.param == "index":
        reader.load_index()
    else:
        reader.load_tables_of_packs()
    return reader


def _escape(path: bytes) -> str:
    return path.decode("latin-1").encode("unicode_escape").decode()


def _described(entry: Entry) -> dict[str, Any]:
    """An entry in the words of `expected.json`."""
    described: dict[str, Any] = {
        "mode": oct(FILE_TYPES[entry.kind] | entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime,
        "xattrs": {os.fsdecode(name): value.hex() for name, value in entry.xattrs.items()},
    }
    if entry.kind == FILE:
        described |= {"size": entry.size, "links": entry.links, "sha256": entry.sha256}
    if entry.target is not None:
        assert entry.size == len(entry.target)
        described["target"] = _escape(entry.target)
    if entry.device is not None:
        described["device"] = list(entry.device)
    return described


def _entries(reader: Reader, number: int) -> dict[bytes, Entry]:
    """The entries of a point below the directory that was frozen, by their paths below it."""
    above = os.fsencode(EXPECTED["root"]).lstrip(b"/") + b"/"
    entries = list(reader.walk(reader.points()[number]["root"]))
    # All that is not below it is the way to it.
    assert all(entry.path.startswith(above) or above.startswith(entry.path + b"/") for entry in entries)
    return {entry.path[len(above) :]: entry for entry in entries if entry.path.startswith(above)}


def test_the_reader_imports_nothing_of_ours() -> None:
    modules = set()
    for node in ast.walk(ast.parse(Path(independent_reader.__file__).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    assert {module.split(".")[0] for module in modules} - sys.stdlib_module_names == ALLOWED


@pytest.mark.parametrize("number", range(len(EXPECTED["points"])))
def test_every_entry_of_every_point(reader: Reader, number: int) -> None:
    assert len(reader.points()) == len(EXPECTED["points"])
    expected = EXPECTED["points"][number]
    found = {_escape(path): _described(entry) for path, entry in _entries(reader, number).items()}
    assert found.keys() == expected.keys()
    wrong = {path: (found[path], entry) for path, entry in expected.items() if found[path] != entry}
    assert not wrong


def test_both_ways_find_the_same_chunks() -> None:
    reader = Reader(FROZEN / "vault", EXPECTED["passphrase"])
    reader.load_tables_of_packs()
    from_packs = dict(reader.table)
    reader.load_index()
    assert from_packs
    assert reader.table == from_packs


def test_every_id_is_the_hash_of_what_it_names(reader: Reader) -> None:
    for chunk_id, place in reader.table.items():
        data = reader.chunk(chunk_id, place.kind)
        assert blake3(data, key=reader.chunk_keys[place.kind]).digest() == chunk_id
    packs = [Path(name) for name, _ in reader.packs()]
    assert packs
    for pack in packs:
        assert blake3((reader.vault / pack).read_bytes()).hexdigest() == pack.name
        assert pack.parent.name == pack.name[:2]
    assert {place.pack for place in reader.table.values()} == {str(pack) for pack in packs}


@pytest.mark.parametrize("path", [b"long.txt", b"dense.bin"])
def test_chunks_are_cut_where_fastcdc_cuts(reader: Reader, path: bytes) -> None:
    entry, parameters = _entries(reader, 0)[path], reader.parameters
    assert entry.size > parameters["single_most"]
    average = next(average for limit, average in parameters["tiers"] if limit == 0 or entry.size <= limit)
    if path == b"dense.bin":
        average = max(average, parameters["dense_average"])
    fastcdc = FastCDC(
        average,
        min_size=average // 8,
        max_size=average * 8,
        normalized_chunking=parameters["normalization"],
        seed=reader.chunker_seed,
    )
    data = b"".join(reader.chunk(chunk_id, DATA) for chunk_id in entry.chunks)
    lengths = [reader.table[chunk_id].length for chunk_id in entry.chunks]
    assert len(lengths) > 1
    assert lengths == [chunk.length for chunk in fastcdc.cut_buf(data)]


def test_the_other_objects(reader: Reader) -> None:
    """Machines, sessions and the labels of key slots open too, and have the names that the page gives them."""
    (machine,) = reader.names(f"{reader.base}/machines")
    name = f"{reader.base}/machines/{machine}"
    opened = reader.open_object(reader.get(name), 3, name)
    assert opened["name"] == "frozen"
    assert blake3(opened["name"].encode(), key=reader.derive("machine name")).hexdigest() == machine
    for point in reader.points():
        assert point["machine_id"] == opened["id"]
        name = f"{reader.base}/sessions/{point['id']}"
        session = reader.open_object(reader.get(name), 4, name)
        assert session == {"machine": opened["id"], "started": point["started"]}
    for slot in reader.names(f"{reader.base}/keys"):
        name = f"{reader.base}/keys/{slot}"
        about = bytes.fromhex(json.loads(reader.get(name))["about"])
        assert isinstance(reader.open_object(about, 6, name), str)


def test_another_passphrase_opens_nothing() -> None:
    with pytest.raises(BadVault):
        Reader(FROZEN / "vault", EXPECTED["passphrase"] + " ")
