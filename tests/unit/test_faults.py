"""The vaults that other tests rely on to count, fail and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cas
from cas.errors import ObjectMissing, VaultUnavailable
from cas.vault.local import LocalVault
from cas.vault.memory import MemoryVault
from tests.faults import CountingVault, Fault, FaultyVault

CHECKOUT = os.path.dirname(os.path.dirname(cas.__file__))


def test_counting() -> None:
    vault = CountingVault(MemoryVault())
    vault.put("packs/a", [b"12", b"345"])
    assert [*vault.list("packs/")] == [("packs/a", 5)]
    assert vault.get("packs/a", 1, 2) == b"23"
    with pytest.raises(ObjectMissing):
        vault.size("index/b")
    vault.delete("packs/a")
    assert vault.operations == [
        ("put", "packs/a", 5),
        ("list", "packs/", 0),
        ("get", "packs/a", 2),
        ("size", "index/b", 0),
        ("delete", "packs/a", 0),
    ]
    assert (vault.count(), vault.count("put"), vault.count(prefix="packs/"), vault.count("get", "index/")) == (
        5,
        1,
        4,
        0,
    )
    assert (vault.moved(), vault.moved("get"), vault.moved(prefix="index/")) == (7, 2, 0)
    vault.reset()
    assert vault.count() == 0


def test_failing_before_and_after() -> None:
    inner = MemoryVault()
    error = VaultUnavailable("memory://", "the cable is out.")
    plan = [Fault(2, error, ops={"put"}, when="after"), Fault(1, error, prefix="index/", times=2)]
    vault = FaultyVault(inner, plan)
    vault.put("packs/a", [b"a"])
    with pytest.raises(VaultUnavailable):
        vault.put("packs/b", [b"b"])
    assert inner.get("packs/b") == b"b"
    for _ in range(2):
        with pytest.raises(VaultUnavailable):
            vault.list("index/")
    assert [*vault.list("index/")] == []
    vault.put("packs/c", [b"c"])


KILLED = """
import sys
from cas.vault.local import LocalVault
from tests.faults import WRITES, KillingVault

vault = KillingVault(LocalVault(sys.argv[1]), int(sys.argv[2]), sys.argv[3], ops=WRITES)
for number in range(4):
    [*vault.list("")]
    vault.put(f"packs/{number}", [b"x"])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
@pytest.mark.parametrize("at, when, kept", [(1, "before", 0), (3, "before", 2), (3, "after", 3), (9, "after", 4)])
def test_killing(tmp_path: Path, at: int, when: str, kept: int) -> None:
    vault = LocalVault.create(str(tmp_path), b"{}")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(at), when], cwd=CHECKOUT, check=False, timeout=30
    )
    assert done.returncode == (0 if at > 4 else -signal.SIGKILL)
    assert sorted(entry.name for entry in vault.list("packs/")) == [f"packs/{number}" for number in range(kept)]
