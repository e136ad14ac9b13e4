"""This machine's retention: its policy, kept in the home, and what it means for the machine's points.

The policy is the machine's own, as its schedule will be: another machine decides for itself, and expiring needs this
machine's credential to delete. It is no secret from who runs as its owner here.
"""

from __future__ import annotations

import os
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec

from cas.agent.files import write_atomic
from cas.agent.home import Home
from cas.agent.jobs import recorded
from cas.agent.session import Session
from cas.errors import BackdriveError, InvalidRequest
from cas.model import Point
from cas.repository import Problems
from cas.tasks.delete import delete_points
from cas.tasks.retention import RETAIN_TAG, Policy, Taken, Verdict, check_policy, keep

if TYPE_CHECKING:
    from cas.agent.runs import Edge


def _path(home: Home, name: str) -> Path:
    return home.root / "retention" / f"{name}.json"


def read_policy(home: Home, name: str) -> Policy | None:
    """The policy for the registration of that name, or None. Raises InvalidRequest where it is damaged."""
    path = _path(home, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Policy)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidRequest(f"The retention policy {path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(
            f"The retention policy {path} is damaged.", "Set it again with 'backdrive retention set'."
        ) from None


def write_policy(home: Home, name: str, policy: Policy) -> None:
    """Keep a policy. Raises InvalidRequest for one that cannot be, NoSpace, CacheUnusable."""
    check_policy(policy)
    zone_of(policy)
    write_atomic(_path(home, name), msgspec.json.format(msgspec.json.encode(policy), indent=1) + b"\n")


def zone_of(policy: Policy) -> tzinfo:
    """The policy's time zone. Raises InvalidRequest where this system does not know it."""
    try:
        return ZoneInfo(policy.zone)
    except (KeyError, ValueError, OSError):
        raise InvalidRequest(f"This system knows no time zone '{policy.zone}'.", "Name one as Europe/Berlin.") from None


def local_zone() -> str:
    """The name of this system's time zone, as far as it tells."""
    named = os.environ.get("TZ", "").lstrip(":")
    if not named:
        try:
            named = os.readlink("/etc/localtime").partition("zoneinfo/")[2]
        except OSError:
            named = ""
    try:
        ZoneInfo(named)
    except (KeyError, ValueError, OSError):
        return "UTC"
    return named


def judge(session: Session, points: list[Point], policy: Policy, now: int) -> dict[str, Verdict]:
    """The verdicts on this machine's own points among `points`, by id."""
    own = [point for point in points if point.machine_id == session.registration.machine_id]
    taken = [Taken(point.id, point.started, point.tags.get(RETAIN_TAG, ""), tuple(point.paths)) for point in own]
    return {verdict.id: verdict for verdict in keep(taken, policy, now, zone_of(policy))}


def apply_policy(
    session: Session, edge: Edge, *, dry_run: bool
) -> tuple[list[Point], dict[str, Verdict], list[BackdriveError]]:
    """Delete, so that they can be taken back, the points that the policy does not keep. Returns those points, all
    verdicts, and what could not be read.

    Raises InvalidRequest where there is no policy, VaultReadOnly where the credential may not delete.
    """
    policy = read_policy(session.home, session.registration.name)
    if policy is None or not policy.tiers:
        raise InvalidRequest("This machine has no retention policy.", "Set one with 'backdrive retention set'.")
    problems = Problems()
    points = session.repository.points(problems)
    verdicts = judge(session, points, policy, edge.clock())
    expired = [point for point in points if point.id in verdicts and not verdicts[point.id].keep]
    if expired and not dry_run:
        name = session.registration.name
        with recorded(session.home, "retention", name, edge.clock, edge.code_of, edge.warned) as notes:
            delete_points(session.repository, expired, edge.clock)
            notes.stats = {"points": len(expired)}
    return expired, verdicts, problems.errors
