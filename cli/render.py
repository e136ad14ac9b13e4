"""What a person sees, and what a program reads: sizes, times, columns, JSON, progress.

Results go to standard output, everything else to standard error. `rich` is imported for progress on a terminal only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from cas.events import Event, Listener, Progress, Stage, Warning, ignore

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from cas.model import Node, Owner, Point

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MOST_WARNINGS: Final = 50  # shown; the job record has all


# --- text -----------------------------------------------------------------------------------------------------------


def size(count: int) -> str:
    """Bytes for a person: 3 significant digits, binary units."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def path(name: bytes) -> str:
    """A path for a terminal: what is not printable text is written as escapes, so that no name moves the cursor."""
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def text(name: bytes) -> str:
    """A path for JSON. Bytes that are not UTF-8 become lone surrogates (U+DC80 to U+DCFF), as Python's `os.fsdecode`
    does and `os.fsencode` undoes; JSON writes them as `\\udc80`.
    """
    return name.decode("utf-8", "surrogateescape")


def columns(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> Iterator[str]:
    """Lines of aligned columns, two spaces apart; those in `right` are aligned to the right."""
    table = [list(row) for row in rows]
    if not table:
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    on_right = set(right)
    for row in table:
        cells = [
            cell.rjust(width) if number in on_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def line(message: str = "") -> None:
    """One line of the result."""
    sys.stdout.write(_safe(message) + "\n")


def note(message: str) -> None:
    """One line beside the result."""
    click.echo(_safe(message), err=True)


def _safe(message: str) -> str:
    return message.encode("utf-8", "backslashreplace").decode()


def document(value: Any) -> None:
    """The one JSON document of a command."""
    import json

    # ASCII: lone surrogates have no encoding of their own, and every terminal and pipe takes it.
    sys.stdout.write(json.dumps(value, ensure_ascii=True, indent=2) + "\n")


def time(ns: int, utc_offset: int | None = None) -> str:
    """A time for a person: in the local time of `utc_offset` (seconds east), or of this machine."""
    from datetime import UTC, datetime, timedelta, timezone

    zone = None if utc_offset is None else timezone(timedelta(seconds=utc_offset))
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def iso_time(ns: int) -> str:
    """A time for JSON: UTC, with its nanoseconds."""
    from datetime import UTC, datetime

    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


# --- warnings -------------------------------------------------------------------------------------------------------


def warning_documents(warnings: Iterable[Warning]) -> list[dict[str, str]]:
    """Warnings for JSON."""
    return [{"path": text(warning.path), "reason": warning.reason} for warning in warnings]


def show_warnings(warnings: Sequence[Warning]) -> None:
    """The warnings of a run that has ended, the first of them where there are many."""
    for warning in warnings[:_MOST_WARNINGS]:
        where = f"{path(warning.path)}: " if warning.path else ""
        note(f"warning: {where}{warning.reason}")
    if len(warnings) > _MOST_WARNINGS:
        note(f"warning: and {len(warnings) - _MOST_WARNINGS:,} more; the job record in BACKDRIVE_HOME/jobs has all")


def show_problems(errors: Iterable[Exception]) -> None:
    """What could not be read while the rest went on."""
    for error in errors:
        note(f"warning: {error}")


# --- progress -------------------------------------------------------------------------------------------------------


@contextmanager
def progress(as_json: bool) -> Iterator[Listener]:
    """A listener that shows how a task gets on: on a terminal only, and never beside JSON."""
    if as_json or not sys.stderr.isatty():
        yield ignore
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    cut = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what gives way where the terminal is narrow
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[counts]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[current]}", markup=False, table_column=cut),
        console=Console(stderr=True),
        transient=True,
        expand=True,
        refresh_per_second=5,
    )
    with bars:
        yield _Line(bars).listen


class _Line:
    """One line that tells how a task gets on."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID = bars.add_task("preparing", total=None, counts="", current="")

    def listen(self, event: Event) -> None:
        if isinstance(event, Stage):
            self._bars.update(self._task, description=event.name)
        elif isinstance(event, Progress):
            elapsed = self._bars.tasks[0].elapsed or 0.0
            self._bars.update(self._task, counts=counts(event, elapsed), current=path(event.current))


def counts(event: Progress, seconds: float) -> str:
    """Files, bytes, rate, new data and time left, as far as they are known after so many seconds."""
    done = max(event.size, event.read)  # what is read of a large file counts before the file does
    parts = [plural(event.files, "file"), size(done)]
    total = event.total_size
    if total:
        parts[1] += f" of {size(total)} ({min(100 * done // total, 100)} %)"
    rate = done / seconds if seconds > 1 else 0
    if rate:
        parts.append(f"{size(int(rate))}/s")
    if event.added:
        parts.append(f"{size(event.added)} new")
    if total and rate and total > done:
        left = int((total - done) / rate)
        hours = f"{left // 3600}:" if left >= 3600 else ""
        parts.append(f"{hours}{left // 60 % 60:02d}:{left % 60:02d} left")
    return ", ".join(parts)


# --- documents ------------------------------------------------------------------------------------------------------


def point_document(point: Point) -> dict[str, Any]:
    """A recovery point for JSON."""
    from cas.tasks.choose import point_time

    stats = point.stats
    return {
        "id": point.id,
        "time": point_time(point),
        "started": iso_time(point.started),
        "finished": iso_time(point.finished),
        "utc_offset": point.utc_offset,
        "machine": point.machine,
        "machine_id": point.machine_id,
        "paths": [text(root) for root in point.paths],
        "mode": point.mode,
        "parent": point.parent,
        "files": stats.files,
        "directories": stats.directories,
        "size": stats.size,
        "added": stats.added,
        "stats": {name: getattr(stats, name) for name in stats.__struct_fields__},
        "excludes": point.excludes,
        "tags": point.tags,
        "platform": point.platform,
        "agent": point.agent,
    }


def node_document(name: bytes, node: Node, owner: Owner | None) -> dict[str, Any]:
    """An entry of a recovery point for JSON."""
    from cas.model import NodeKind

    found: dict[str, Any] = {
        "path": text(name),
        "type": NodeKind(node.kind).name.lower(),
        "mode": f"{node.mode:04o}",
        "size": node.size,
        "mtime": iso_time(node.mtime),
        "inode": node.inode,
    }
    if node.kind == NodeKind.SYMLINK:
        found["target"] = text(node.content)
    if node.extra is not None and node.extra.link is not None:
        found["links"] = node.extra.link.count
    if owner is not None:
        found |= {"uid": owner.uid, "gid": owner.gid, "user": text(owner.user), "group": text(owner.group)}
    return found


def long_line(name: bytes, node: Node, owner: Owner) -> str:
    """An entry as `ls -l` shows it."""
    import stat

    from cas.model import NodeKind

    links = node.extra.link.count if node.extra is not None and node.extra.link is not None else 1
    user = path(owner.user) if owner.user else str(owner.uid)
    group = path(owner.group) if owner.group else str(owner.gid)
    target = f" -> {path(node.content)}" if node.kind == NodeKind.SYMLINK else ""
    mode = stat.filemode(node.st_mode)
    return f"{mode} {links:>3} {user:<8} {group:<8} {node.size:>13,} {time(node.mtime)} {path(name)}{target}"
