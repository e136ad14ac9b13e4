"""What `cas/vault/base.py` promises, proven for every implementation."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cas.errors import BackdriveError, InvalidRequest, ObjectExists, ObjectMissing
from cas.vault.base import Vault, VaultEntry

Client = Callable[[], Vault]

CONTENT = bytes(range(256)) * 4  # 1 KiB


def names(vault: Vault, prefix: str = "") -> list[str]:
    return sorted(entry.name for entry in vault.list(prefix) if entry.name != "vault.json")


def both(vault: Vault, client: Client) -> Sequence[Vault]:
    """The client that wrote, and another one."""
    return vault, client()


# --- put, and reading after it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "packs/ab/cd", "A-z_0.9", "..a/b..", ".x", "d/" * 9 + "deep", "x" * 255])
def test_every_client_sees_an_object_once_put_returned(vault: Vault, client: Client, name: str) -> None:
    vault.put(name, [CONTENT])
    for other in both(vault, client):
        assert other.get(name) == CONTENT
        assert other.size(name) == len(CONTENT)
        assert VaultEntry(name, len(CONTENT)) in [*other.list("")]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"", b"", b""],
        [b"one"],
        [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")],
        [b"", b"between", b""],
        [memoryview(b"sliced")[1:4], memoryview(bytearray(b"views"))[2:]],
        [memoryview(b"eight by").cast("Q")],
        [bytes([i % 256]) for i in range(3000)],
    ],
    ids=["no parts", "empty part", "empty parts", "one", "kinds", "gaps", "slices", "words", "3000 parts"],
)
def test_parts_are_concatenated(vault: Vault, parts: list[bytes | bytearray | memoryview]) -> None:
    whole = b"".join(parts)
    vault.put("object", parts)
    assert vault.get("object") == whole
    assert vault.size("object") == len(whole)
    vault.put("object", parts)  # the comparison with what is there goes by parts too
    vault.put("object", [whole])


def test_parts_may_change_after_put(vault: Vault) -> None:
    part = bytearray(b"before")
    vault.put("object", [part])
    part[:] = b"after."
    assert vault.get("object") == b"before"


def test_a_large_object(vault: Vault) -> None:
    part = hashlib.shake_256(b"seed").digest(1 << 20)
    parts = [part] * 8 + [b"tail"]
    whole = b"".join(parts)
    vault.put("large", parts)
    assert vault.size("large") == len(whole)
    assert vault.get("large") == whole
    assert vault.get("large", (8 << 20) - 2) == whole[-6:]
    vault.put("large", parts)
    for parts[3] in (part[:-1] + bytes([part[-1] ^ 1]), part[:-1]):
        with pytest.raises(ObjectExists):
            vault.put("large", parts)


# --- write once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [(b"one", b"two"), (b"one", b""), (b"", b"one"), (b"one", b"one more")])
def test_an_object_never_changes(vault: Vault, client: Client, first: bytes, second: bytes) -> None:
    vault.put("object", [first])
    for other in both(vault, client):
        other.put("object", [first])
        with pytest.raises(ObjectExists) as caught:
            other.put("object", [second])
        assert (caught.value.url, caught.value.name) == (other.url, "object")
        assert other.get("object") == first
    assert names(vault) == ["object"]


@pytest.mark.parametrize("kinds", [1, 2, 16])
def test_of_racing_writers_one_content_wins(vault: Vault, client: Client, kinds: int) -> None:
    clients = both(vault, client)
    contents = [bytes([i % kinds]) * 5000 for i in range(16)]
    barrier = threading.Barrier(len(contents))

    def write(round_: int, i: int) -> bool:
        barrier.wait()
        try:
            clients[i % 2].put(f"race/{round_}", [contents[i][:100], contents[i][100:]])
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(len(contents)) as pool:
        for round_ in range(5):
            done = [*pool.map(write, [round_] * len(contents), range(len(contents)))]
            kept = vault.get(f"race/{round_}")
            assert kept in contents
            assert done == [content == kept for content in contents]
    assert len(names(vault, "race/")) == 5


def test_no_reader_sees_a_part_of_an_object(vault: Vault, client: Client) -> None:
    """Reads and lists while eight objects are written, each found absent or whole."""
    content = CONTENT * 512  # 512 KiB
    parts = [content[i : i + 65536] for i in range(0, len(content), 65536)]
    ended = threading.Event()

    def watch() -> int:
        seen = 0
        other = client()
        while not ended.is_set():
            for entry in other.list("half/"):
                assert entry.size == len(content)
            for i in range(8):
                try:
                    assert other.get(f"half/{i}", len(content) - 4) == content[-4:]
                except ObjectMissing:
                    continue
                seen += 1
        return seen

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        try:
            for i in range(8):
                vault.put(f"half/{i}", parts)
        finally:
            ended.set()
        for watcher in watchers:
            watcher.result()


# --- reading --------------------------------------------------------------------------------------------------------

EDGES = [0, 1, 2, 511, 512, 1022, 1023, 1024, 1025, 5000, 1 << 40, 1 << 70]


def test_ranges(vault: Vault) -> None:
    vault.put("object", [CONTENT])
    vault.put("empty", [])
    for offset, length in itertools.product(EDGES, [None, *EDGES]):
        end = None if length is None else offset + length
        assert vault.get("object", offset, length) == CONTENT[offset:end], (offset, length)
        assert vault.get("empty", offset, length) == b"", (offset, length)


def test_negative_ranges_are_a_mistake(vault: Vault) -> None:
    vault.put("object", [CONTENT])
    for offset, length in [(-1, None), (0, -1), (-1, 5), (5000, -1)]:
        with pytest.raises(ValueError, match="negative"):
            vault.get("object", offset, length)


@pytest.mark.parametrize("name", ["absent", "packs/absent", "packs", "object-", "objec", "object.x"])
def test_what_is_not_there_is_missing(vault: Vault, name: str) -> None:
    vault.put("object", [b"x"])
    vault.put("packs/ab/cd", [b"x"])
    reads: list[Callable[[], object]] = [
        lambda: vault.get(name),
        lambda: vault.get(name, 5, 0),
        lambda: vault.size(name),
    ]
    for read in reads:
        with pytest.raises(ObjectMissing) as caught:
            read()
        assert (caught.value.url, caught.value.name) == (vault.url, name)


# --- listing --------------------------------------------------------------------------------------------------------


def test_a_prefix_lists_what_starts_with_it(vault: Vault) -> None:
    for number, name in enumerate(["a", "ab/c", "ab/d/e", "ab/d/f/g", "abc/d", "b/ab/c"]):
        vault.put(name, [bytes(number)])
    assert names(vault, "") == ["a", "ab/c", "ab/d/e", "ab/d/f/g", "abc/d", "b/ab/c"]
    assert sorted(vault.list("ab/")) == [("ab/c", 1), ("ab/d/e", 2), ("ab/d/f/g", 3)]
    assert sorted(vault.list("ab/d/")) == [("ab/d/e", 2), ("ab/d/f/g", 3)]
    assert sorted(vault.list("b/")) == [("b/ab/c", 5)]
    for nothing in ("c/", "a/", "ab/c/", "ab/d/f/g/h/", "d/"):
        assert [*vault.list(nothing)] == []


def test_a_listing_may_be_left(vault: Vault) -> None:
    for i in range(5):
        vault.put(f"left/{i}", [b"x"])
    assert next(vault.list("left/")).size == 1
    assert len(names(vault, "left/")) == 5


def test_a_listing_lives_through_changes(vault: Vault) -> None:
    """What is there throughout is shown; what comes or goes meanwhile may be."""
    for i in range(20):
        vault.put(f"stays/{i}", [b"x"])
        vault.put(f"goes/{i}", [b"x"])
    seen = set()
    for number, entry in enumerate(vault.list("")):
        seen.add(entry.name)
        if number < 20:
            vault.delete(f"goes/{number}")
            vault.put(f"comes/{number}", [b"x"])
    assert {f"stays/{i}" for i in range(20)} <= seen
    assert names(vault, "goes/") == []


# --- names ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "x/..",
    "x/../y",
    "x/./y",
    "./x",
    "/",
    "/x",
    "/etc/passwd",
    "x/",
    "x//y",
    "//host/x",
    "x\\y",
    "..\\x",
    "C:x",
    "C:/x",
    "x:stream",
    "x y",
    "x\n",
    "\n",
    "x\0",
    "x\0y",
    "\u00e9",
    "\uff58",
    "x\u0660",
    "x\udc80",
    "x?y",
    "x%2fy",
    "~",
    "x*",
    "tmp",
    "tmp/x",
    "TMP/x",
    "x" * 256,
    "x/" * 512 + "y",
]


def test_hostile_names_are_refused(vault: Vault) -> None:
    def put(name: str) -> None:
        vault.put(name, [b"x"])

    def list_below(name: str) -> object:
        return vault.list(name + "/")  # refused at once, not when the first entry is asked for

    calls: list[Callable[[str], object]] = [put, vault.get, vault.size, vault.delete, list_below]
    for name, call in itertools.product(HOSTILE, calls):
        with pytest.raises(InvalidRequest):
            call(name)
            pytest.fail(f"{call} took {name!r}")
    assert names(vault) == []


def test_hostile_prefixes_are_refused(vault: Vault) -> None:
    for prefix in ["x", "/", "../", "x/../", "x//", "\u00e9/", "tmp/", "ab/c"]:
        with pytest.raises(InvalidRequest):
            vault.list(prefix)
            pytest.fail(f"list took {prefix!r}")


def test_tmp_is_reserved_at_the_front_only(vault: Vault) -> None:
    for name in ("tmpx", "x/tmp", "x.tmp/tmp"):
        vault.put(name, [b"x"])
    assert names(vault) == ["tmpx", "x.tmp/tmp", "x/tmp"]


# --- delete ---------------------------------------------------------------------------------------------------------


def test_delete_is_idempotent(vault: Vault, client: Client) -> None:
    vault.put("packs/a", [b"a"])
    vault.put("packs/b", [b"b"])
    vault.delete("packs/a")
    for other in both(vault, client):
        other.delete("packs/a")
        with pytest.raises(ObjectMissing):
            other.get("packs/a")
        assert names(other) == ["packs/b"]
    for absent in ("never", "packs", "no/such", "packs/b/below"):
        vault.delete(absent)
    assert names(vault) == ["packs/b"]


def test_a_name_is_free_after_delete(vault: Vault) -> None:
    vault.put("packs/a", [b"first"])
    vault.delete("packs/a")
    vault.put("packs/a", [b"second"])
    assert vault.get("packs/a") == b"second"


# --- threads --------------------------------------------------------------------------------------------------------


def test_every_method_from_many_threads(vault: Vault) -> None:
    def work(i: int) -> None:
        content = bytes([i]) * 1000
        for round_ in range(4):
            name = f"t{i % 4}/{i}-{round_}"
            vault.put(name, [content])
            assert vault.get(name, 990, 20) == content[990:]
            assert vault.size(name) == 1000
            assert name in {entry.name for entry in vault.list(f"t{i % 4}/")}
            if round_ % 2:
                vault.delete(name)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(work, range(16)):
            pass
    assert len(names(vault)) == 16 * 2


def test_the_url_is_for_people(vault: Vault, client: Client) -> None:
    assert ":" in vault.url
    assert vault.url == client().url


# --- anything, in any order -----------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "p/a", "p/b", "p/q/a", "pq/a", "q/p/a"])
CONTENTS = st.binary(max_size=3)


class VaultModel(RuleBasedStateMachine):
    """Two clients of a vault, against one dict."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.clients = [client(), client()]
        self.model: dict[str, bytes] = {}

    @rule(name=NAMES, content=CONTENTS, who=st.integers(0, 1))
    def put(self, name: str, content: bytes, who: int) -> None:
        expected = self.model.setdefault(name, content)
        try:
            self.clients[who].put(name, [content[:1], content[1:]])
        except ObjectExists:
            assert expected != content
        else:
            assert expected == content

    @rule(name=NAMES, offset=st.integers(0, 4), length=st.none() | st.integers(0, 4), who=st.integers(0, 1))
    def get(self, name: str, offset: int, length: int | None, who: int) -> None:
        content = self.model.get(name)
        try:
            data = self.clients[who].get(name, offset, length)
            size = self.clients[who].size(name)
        except BackdriveError as error:
            assert isinstance(error, ObjectMissing) and content is None
        else:
            assert content is not None
            assert (data, size) == (content[offset:][:length], len(content))

    @rule(name=NAMES, who=st.integers(0, 1))
    def delete(self, name: str, who: int) -> None:
        self.clients[who].delete(name)
        self.model.pop(name, None)

    @rule(prefix=st.sampled_from(["", "p/", "p/q/", "pq/", "none/"]), who=st.integers(0, 1))
    def list_prefix(self, prefix: str, who: int) -> None:
        expected = sorted((name, len(content)) for name, content in self.model.items() if name.startswith(prefix))
        assert sorted(entry for entry in self.clients[who].list(prefix) if entry.name != "vault.json") == expected

    @invariant()
    def nothing_else_is_there(self) -> None:
        assert names(self.clients[0]) == sorted(self.model)


def test_any_sequence_agrees_with_a_dict(make_vault: Callable[[], Client]) -> None:
    class NewVaultModel(VaultModel):
        def __init__(self) -> None:
            super().__init__(make_vault())

    run_state_machine_as_test(NewVaultModel, settings=settings(max_examples=15, stateful_step_count=25, deadline=None))
