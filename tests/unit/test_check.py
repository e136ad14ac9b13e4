"""What a check costs, what it names, and what it does not call damage."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cas.errors import InvalidRequest, VaultUnavailable
from cas.repository import Repository
from cas.store.formats import PackKind
from cas.store.layout import VAULT_HEADER
from cas.tasks.check import CheckReport, check
from cas.vault.base import Vault
from tests.engine import World, write_files
from tests.faults import CountingVault, Fault, FaultyVault

READ = random.Random(4).randbytes


@pytest.fixture
def filled(world: World, source: Path) -> World:
    """Two points with several packs of each kind."""
    write_files(source, {f"d{i}/f{j}": READ(30_000) for i in range(8) for j in range(4)})
    write_files(source, {f"small/{'n' * 100}{i}": b"%d" % i for i in range(300)})
    world.backup(source)
    write_files(source, {"d0/f0": READ(50_000)})
    world.backup(source)
    return world


def packs(repository: Repository, kind: PackKind) -> list[str]:
    return sorted(entry.name for entry in repository.vault.list(repository.layout.packs(kind)))


def replace(vault: Vault, name: str, data: bytes) -> None:
    vault.delete(name)
    vault.put(name, [data])


def flip(vault: Vault, name: str, position: int) -> None:
    data = bytearray(vault.get(name))
    data[position] ^= 4
    replace(vault, name, bytes(data))


def test_a_clean_repository(filled: World) -> None:
    with filled.open() as repository:
        report = check(repository)
        assert report.ok
        assert report.notes == []
        assert (report.points, report.packs_read, report.read) == (2, 0, 0)
        assert report.files >= 332
        whole = check(repository, 100)
        assert (whole.ok, whole.packs_read) == (True, whole.packs)
        assert whole.read == sum(
            entry.size for kind in PackKind for entry in repository.vault.list(repository.layout.packs(kind))
        )


def test_every_pack_is_fetched_once(filled: World) -> None:
    with filled.open() as repository:
        names = [name for kind in PackKind for name in packs(repository, kind)]
        check(repository)  # the index is up to date
    counting = CountingVault(filled.vault)
    with filled.open(counting) as repository:
        check(repository, 100)
        whole = [operation for operation in counting.operations if operation.name in names and operation.op == "get"]
        sizes = {name: filled.vault.size(name) for name in names}
        assert sorted(operation.name for operation in whole if operation.bytes == sizes[operation.name]) == names
        listed = [operation.name for operation in counting.operations if operation.op == "list"]
        assert sorted(name for name in listed if name in map(repository.layout.packs, PackKind)) == sorted(
            map(repository.layout.packs, PackKind)
        )
        assert not counting.count("put")


def test_a_part_of_the_packs_is_chosen(filled: World) -> None:
    with filled.open() as repository:
        total = check(repository).packs
        assert total >= 8
        half = check(repository, 50, choose=random.Random(1))
        assert half.packs_read == -(-total // 2)
        assert check(repository, 0.001).packs_read == 1
        seen = set()
        for seed in range(40):
            counting = CountingVault(filled.vault)
            with filled.open(counting, filled.cache / "other") as counted:
                check(counted, 1, choose=random.Random(seed))
                sizes = {entry.name: entry.size for entry in filled.vault.list("")}
                seen |= {o.name for o in counting.operations if o.op == "get" and o.bytes == sizes[o.name]}
        assert set(packs(repository, PackKind.DATA)) <= seen
        for percent in (-1, 101, float("nan")):
            with pytest.raises(InvalidRequest):
                check(repository, percent)


def test_only_the_files_in_the_damaged_block_are_named(filled: World, source: Path) -> None:
    with filled.open() as repository:
        name = packs(repository, PackKind.DATA)[0]
        number, _ = next(entry for entry in repository.index.packs() if entry[1].id.hex() == name[-64:])
        block = repository.index.blocks(number)[1]
        flip(filled.vault, name, block.offset + 5)
        assert check(repository).ok  # what was not read was not seen
        (problem,) = check(repository, 100).problems
        assert (problem.kind, problem.name) == ("pack", name)
        assert "block 1" in problem.reason
        assert 1 <= problem.file_count <= 4
        assert len(problem.files) == problem.file_count
        assert all(path.startswith(os.fsencode(source)) for path in problem.files)
        assert problem.points
        assert "It touches" in str(problem)


def test_damage_that_touches_no_block(filled: World) -> None:
    with filled.open() as repository:
        name = packs(repository, PackKind.DATA)[0]
        for position in (0, 10, filled.vault.size(name) - 1, filled.vault.size(name) - 30):
            flip(filled.vault, name, position)
            (problem,) = check(repository, 100).problems
            assert (problem.name, problem.file_count, problem.points) == (name, 0, [])
            assert "every block still opens" in problem.reason
            flip(filled.vault, name, position)


def test_structure_alone_sees_what_is_missing_or_cut(filled: World) -> None:
    with filled.open() as repository:
        first, second = packs(repository, PackKind.DATA)[:2]
        replace(filled.vault, first, filled.vault.get(first)[:-1])
        filled.vault.delete(second)
        report = check(repository)
        assert {problem.name for problem in report.problems} == {first, second}
        assert all(problem.kind == "pack" for problem in report.problems)
        missing = next(problem for problem in report.problems if problem.name == second)
        assert missing.file_count


def test_a_lost_tree_pack_names_directories(filled: World) -> None:
    with filled.open() as repository:
        for name in packs(repository, PackKind.TREE):
            filled.vault.delete(name)
        report = check(repository, 100)
        assert report.problems
        assert {path for problem in report.problems for path in problem.files} == {b"/"}


def test_a_pack_that_cannot_be_read_is_damage_and_a_vault_that_cannot_is_not(filled: World) -> None:
    with filled.open() as repository:
        name = packs(repository, PackKind.DATA)[0]
    error = VaultUnavailable("memory://", "input/output error")
    with filled.open(FaultyVault(filled.vault, [Fault(1, error, prefix=name, times=99)])) as repository:
        (problem,) = check(repository, 100).problems
        assert "input/output error" in problem.reason
        assert problem.file_count
    gone = [Fault(1, error, ops={"get"}, prefix=name, times=99), Fault(1, error, ops={"size"}, prefix=VAULT_HEADER)]
    with filled.open(FaultyVault(filled.vault, gone)) as repository, pytest.raises(VaultUnavailable):
        check(repository, 100)


def lose_segments(world: World) -> CheckReport:
    with world.open() as repository:
        for entry in [*world.vault.list(repository.layout.index)]:
            world.vault.delete(entry.name)
        return check(repository, 100)


def test_lost_segments_are_told_from_lost_packs(filled: World) -> None:
    report = lose_segments(filled)
    (problem,) = report.problems
    assert (problem.kind, "cache rebuild" in problem.advice) == ("index", True)
    assert problem.file_count >= 332
    assert problem.files
    assert len(problem.points) == 2
    with filled.open() as repository:
        repository.rebuild()
        assert check(repository, 100).ok


def test_packs_that_nobody_names_are_a_note(filled: World, source: Path) -> None:
    with filled.open() as repository:
        known = {entry.name for entry in filled.vault.list(repository.layout.index)}
    write_files(source, {"new": READ(200_000)})
    point = filled.backup(source).point
    assert point is not None
    with filled.open() as repository:  # as if that backup had been killed before its segment
        for entry in [*filled.vault.list(repository.layout.index)]:
            if entry.name not in known:
                filled.vault.delete(entry.name)
        filled.vault.delete(repository.layout.points + point.id)
    with filled.open(cache=filled.cache / "other") as repository:
        report = check(repository, 100)
        assert report.ok
        assert any("named by no index segment" in note for note in report.notes)
        assert any(point.id[:8] in note for note in report.notes)


def test_a_lost_pack_whose_chunks_were_stored_again_is_a_note(filled: World, source: Path) -> None:
    with filled.open() as repository:
        name = packs(repository, PackKind.DATA)[0]
        filled.vault.delete(name)
        repository.rebuild()
        assert not check(repository).ok
    write_files(source, {"d0/f0": READ(10)})
    filled.backup(source)
    with filled.open() as repository:
        lost = check(repository, 100)
    assert all(problem.name == name for problem in lost.problems)  # of the first point, as far as the source changed
    with filled.open(cache=filled.cache / "other") as repository:
        assert len(check(repository, 100).problems) == len(lost.problems)


def test_many_files_are_counted_and_some_listed(world: World, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cas.tasks.findings.MOST_FILES", 10)
    write_files(source, {f"{i}": b"%d" % i for i in range(40)})
    world.backup(source)
    with world.open() as repository:
        filled_pack = packs(repository, PackKind.DATA)[0]
        world.vault.delete(filled_pack)
        (problem,) = check(repository).problems
        assert (problem.file_count, len(problem.files)) == (40, 10)


def test_a_wrong_local_index_is_no_damage_of_the_vault(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled.open() as repository:
        check(repository)
        number, info = repository.index.packs()[0]
        blocks = repository.index.blocks(number)
        real = type(repository.index).blocks
        wrong = [blocks[0]._replace(plain=blocks[0].plain + 1), *blocks[1:]]
        monkeypatch.setattr(type(repository.index), "blocks", lambda self, n: wrong if n == number else real(self, n))
        problems = check(repository, 100).problems
        assert [(problem.kind, info.id.hex() in problem.name) for problem in problems] == [("index", True)]
        assert "cache rebuild" in problems[0].advice
