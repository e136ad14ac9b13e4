"""Whatever the point and whatever stands in the target: restore gives back the point and touches nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.model import Extra, NodeKind
from cas.tasks.requests import Conflict, RestoreRequest
from cas.tasks.restore import restore
from tests.restoring import Lab, Made, leftovers, made_directory, picture

_NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\n", b"Copy of a"])
_TIMES = st.sampled_from([0, 1, 999_999_999, 1_000_000_000_123_456_789, -5])
_CONTENTS = st.sampled_from([b"", b"x", b"y", b"xx", bytes(3)])
_XATTRS = st.sampled_from([None, None, None, Extra(xattrs={b"user.k": b"v"}), Extra(xattrs={b"user.l": b""})])

_FILES = st.builds(
    Made,
    data=_CONTENTS,
    mode=st.sampled_from([0o644, 0o600, 0o755, 0o4711, 0o000]),
    mtime=_TIMES,
    extra=_XATTRS,
)
_LINKS = st.builds(Made, st.just(NodeKind.SYMLINK), st.sampled_from([b"a", b"..", b"/"]), mode=st.just(0o777))
_FIFOS = st.builds(Made, st.just(NodeKind.FIFO), mtime=_TIMES, mode=st.sampled_from([0o600, 0o666]))
_ENTRIES = st.recursive(
    st.one_of(_FILES, _LINKS, _FIFOS),
    lambda below: st.builds(
        Made,
        st.just(NodeKind.DIRECTORY),
        entries=st.dictionaries(_NAMES, below, max_size=4),
        mode=st.sampled_from([0o755, 0o700, 0o1777, 0o500]),
        mtime=_TIMES,
        extra=_XATTRS,
    ),
    max_leaves=12,
)
_TREES = st.dictionaries(_NAMES, _ENTRIES, max_size=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.protect(tmp_path_factory.mktemp("empty"))  # the first backup raises the recursion limit, and hypothesis minds
    return lab


def everything(lab: Lab, tree: dict[bytes, Made], target: Path, conflict: Conflict) -> int:
    """Restore; returns how many entries were blocked."""
    point = lab.made({b"top": made_directory(tree)})
    result = restore(lab.repository, point, RestoreRequest(items=[b"/top"], target=target, conflict=conflict))
    assert all("not empty" in warning.reason for warning in result.warnings)
    assert leftovers(target) == []
    return len(result.warnings)


class _Places:
    """Two empty directories."""

    def __enter__(self) -> Iterator[Path]:
        self.place = Path(tempfile.mkdtemp())
        for name in ("clean", "used"):
            (self.place / name).mkdir()
        return iter([self.place / "clean", self.place / "used"])

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.place)


@settings(max_examples=50)
@given(_TREES, _TREES)
def test_overwrite_gives_the_point_whatever_was_there(
    lab: Lab, tree: dict[bytes, Made], before: dict[bytes, Made]
) -> None:
    with _Places() as (clean, used):
        everything(lab, tree, clean, Conflict.OVERWRITE)
        everything(lab, before, used, Conflict.OVERWRITE)
        old = picture(used / "top")
        blocked = everything(lab, tree, used, Conflict.OVERWRITE)
        want, have = picture(clean / "top"), picture(used / "top")
        if not blocked:
            # What looks equal (size and mtime) is taken as equal: only `verify` would compare it.
            for name, entry in want.items():
                assert have[name][:5] == entry[:5]
                assert have[name][7] == entry[7]
                assert have[name][6] == entry[6] or have[name][6] == old[name][6]
        again = everything(lab, tree, used, Conflict.OVERWRITE)
        assert again == blocked
        assert picture(used / "top") == have


@settings(max_examples=50)
@given(_TREES, _TREES, st.sampled_from([Conflict.COPY, Conflict.SKIP]))
def test_copy_and_skip_touch_nothing_that_was_there(
    lab: Lab, tree: dict[bytes, Made], before: dict[bytes, Made], conflict: Conflict
) -> None:
    with _Places() as (_, used):
        everything(lab, before, used, Conflict.OVERWRITE)
        old = picture(used)
        assert everything(lab, tree, used, conflict) == 0
        new = picture(used)
        for name, entry in old.items():
            same = [0, 1, 2, 4, 5, 6, 7] if os.path.isdir(os.fsencode(used) + name) else range(8)
            assert [new[name][at] for at in same] == [entry[at] for at in same]
        everything(lab, tree, used, conflict)
        assert picture(used) == new  # the second run finds everything done


@settings(max_examples=50)
@given(_TREES)
def test_a_restored_tree_protected_again_is_the_same_tree(lab: Lab, tree: dict[bytes, Made]) -> None:
    with _Places() as (clean, used):
        everything(lab, tree, clean, Conflict.OVERWRITE)
        point = lab.protect(clean)
        restore(lab.repository, point, RestoreRequest(items=[os.fsencode(clean / "top")], target=used))
        assert picture(used / "top") == picture(clean / "top")
