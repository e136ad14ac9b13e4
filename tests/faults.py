"""Vaults that count, fail or kill: wrap any vault in one, to assert what an operation costs and what a fault leaves.

An operation is one call of `put`, `get`, `size`, `list` or `delete`. A listing is read out at once, so that it counts,
fails or kills where it is asked for.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from typing_extensions import Buffer

from cas.vault.base import Vault, VaultEntry

When = Literal["before", "after"]
EVERY_OP = frozenset({"put", "get", "size", "list", "delete"})
WRITES = frozenset({"put", "delete"})


class Operation(NamedTuple):
    """One finished operation. A listing's name is its prefix."""

    op: str
    name: str
    bytes: int  # of content, stored or given back: none for the other operations, nor for one that failed


class _Progress:
    """What an operation under way has moved so far."""

    bytes = 0


class WrappingVault:
    """Passes every operation on to `inner`, through `_operation`: the one place that a kind of vault below changes."""

    def __init__(self, inner: Vault) -> None:
        self.inner = inner

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        yield _Progress()

    @property
    def url(self) -> str:
        return self.inner.url

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        with self._operation("put", name) as progress:
            self.inner.put(name, parts)
            progress.bytes = sum(memoryview(part).nbytes for part in parts)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._operation("get", name) as progress:
            data = self.inner.get(name, offset, length)
            progress.bytes = len(data)
        return data

    def size(self, name: str) -> int:
        with self._operation("size", name):
            return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[VaultEntry]:
        with self._operation("list", prefix):
            return iter([*self.inner.list(prefix)])

    def delete(self, name: str) -> None:
        with self._operation("delete", name):
            self.inner.delete(name)

    def close(self) -> None:
        self.inner.close()


class CountingVault(WrappingVault):
    """Keeps `operations`, in the order in which they ended, failed ones too: they cost a request as well."""

    def __init__(self, inner: Vault) -> None:
        super().__init__(inner)
        self.operations: list[Operation] = []

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        progress = _Progress()
        try:
            yield progress
        finally:
            self.operations.append(Operation(op, name, progress.bytes))

    def count(self, op: str | None = None, prefix: str = "") -> int:
        """How many operations there were: of one kind, on names that start with `prefix`."""
        return len(self._chosen(op, prefix))

    def moved(self, op: str | None = None, prefix: str = "") -> int:
        """Bytes of content that they stored or gave back."""
        return sum(operation.bytes for operation in self._chosen(op, prefix))

    def reset(self) -> None:
        """Forget what happened so far."""
        self.operations.clear()

    def _chosen(self, op: str | None, prefix: str) -> Sequence[Operation]:
        return [o for o in self.operations if op in (None, o.op) and o.name.startswith(prefix)]


@dataclass
class Fault:
    """Raise `error` at the `at`-th (from 1) operation among those that `ops` and `prefix` choose, and again at the
    `times` - 1 after it. With when="after" the operation has been done, and its caller cannot know."""

    at: int
    error: Exception
    ops: Collection[str] = EVERY_OP
    prefix: str = ""
    when: When = "before"
    times: int = 1
    seen: int = 0  # operations chosen so far: FaultyVault counts here


class FaultyVault(WrappingVault):
    """Fails by plan. Where several faults fall on one operation, the first of the plan is raised."""

    def __init__(self, inner: Vault, plan: Sequence[Fault]) -> None:
        super().__init__(inner)
        self.plan = plan
        self._lock = threading.Lock()

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        due: list[Fault] = []
        with self._lock:
            for fault in self.plan:
                if op in fault.ops and name.startswith(fault.prefix):
                    fault.seen += 1
                    if fault.at <= fault.seen < fault.at + fault.times:
                        due.append(fault)
        _raise_first(due, "before")
        yield _Progress()
        _raise_first(due, "after")


def _raise_first(due: Sequence[Fault], when: When) -> None:
    for fault in due:
        if fault.when == when:
            raise fault.error


class KillingVault(WrappingVault):
    """Kills this process with SIGKILL before or after the `at`-th (from 1) operation of `ops`. For subprocesses."""

    def __init__(self, inner: Vault, at: int, when: When, ops: Collection[str] = EVERY_OP) -> None:
        super().__init__(inner)
        self.at = at
        self.when = when
        self.ops = ops
        self._seen = 0
        self._lock = threading.Lock()

    @contextmanager
    def _operation(self, op: str, name: str) -> Iterator[_Progress]:
        with self._lock:
            self._seen += op in self.ops
            due = op in self.ops and self._seen == self.at
        if due and self.when == "before":
            _die()
        try:
            yield _Progress()
        finally:
            if due and self.when == "after":
                _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
