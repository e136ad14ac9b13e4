"""`backdrive retention`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.retention import Policy


@click.group()
def retention() -> None:
    """Decide how long this machine's recovery points are kept."""


@retention.command("set")
@click.option("--daily", metavar="TIER", help="'DAYS [at HH:MM,...]': 7 to 9999; without times, every point.")
@click.option("--weekly", metavar="TIER", help="'WEEKS [on mon,thu,...] [at HH:MM,...]': 4 to 5163.")
@click.option("--monthly", metavar="TIER", help="'MONTHS [on 1,15,last,first tue,...] [at HH:MM,...]': 3 to 1188.")
@click.option("--yearly", metavar="TIER", help="'YEARS [on 1 jan,first wed of jan,...] [at HH:MM,...]': 1 to 99.")
@click.option(
    "--zone", metavar="ZONE", help="The time zone of all this, such as Europe/Berlin. [default: this system's]"
)
@options.vault_option
@options.json_option
def set_(
    daily: str | None,
    weekly: str | None,
    monthly: str | None,
    yearly: str | None,
    zone: str | None,
    vault: str | None,
    as_json: bool,
) -> None:
    """Set this machine's policy: all its tiers at once. It holds for the points that are there as well.

    Nothing is deleted before 'backdrive retention apply'. A point is kept as long as any tier keeps it; a tier's point
    is the first one at or after each of its times, and is kept for so long from that time. Points that protect
    different paths do not count for each other: each set of paths has its own tiers and its own newest point. A day
    that a month lacks (30 feb) is its last. The tag retain-until=DATE (or always) keeps a point of itself.

    Example: backdrive retention set --daily 7 --weekly '4 on mon,thu' --monthly '12 on 1,15' --yearly '10 on 1 jan'
    """
    from cas.agent.registration import select
    from cas.agent.retention import local_zone, write_policy
    from cas.errors import InvalidRequest
    from cas.tasks.retention import Policy
    from cas.tasks.retention_text import parse_tier

    given = {"daily": daily, "weekly": weekly, "monthly": monthly, "yearly": yearly}
    tiers = {name: parse_tier(name, text) for name, text in given.items() if text is not None}
    if not tiers:
        raise InvalidRequest("A policy needs one tier at least.", "Give --daily, --weekly, --monthly or --yearly.")
    home = options.home()
    registration = select(home, vault)
    policy = Policy(**tiers, zone=zone or local_zone())
    write_policy(home, registration.name, policy)
    _show(policy, as_json)


@retention.command()
@options.vault_option
@options.json_option
def show(vault: str | None, as_json: bool) -> None:
    """Show this machine's policy.

    Example: backdrive retention show
    """
    from cas.agent.registration import select
    from cas.agent.retention import read_policy

    home = options.home()
    policy = read_policy(home, select(home, vault).name)
    if policy is None:
        if as_json:
            render.document(None)
        else:
            render.line("There is no policy: every point is kept.")
        return
    _show(policy, as_json)


@retention.command()
@click.option("--dry-run", is_flag=True, help="Tell which points would go, and delete nothing.")
@options.vault_option
@options.json_option
@click.pass_context
def apply(context: click.Context, dry_run: bool, vault: str | None, as_json: bool) -> None:
    """Delete this machine's points that the policy does not keep. They can be taken back for 14 days.

    Example: backdrive retention apply --dry-run
    """
    from cas.agent.retention import apply_policy
    from cas.tasks.choose import point_time
    from cli.main import exit_code

    with options.session(vault) as session:
        expired, verdicts, problems = apply_policy(session, options.edge(), dry_run=dry_run)
    if as_json:
        render.document(
            {
                "dry_run": dry_run,
                "expired": [render.point_document(point) for point in expired],
                "kept": sum(verdict.keep for verdict in verdicts.values()),
            }
        )
    else:
        for point in expired:
            render.line(f"{point.id[:8]}  {point_time(point).replace('T', ' ')}")
        kept = sum(verdict.keep for verdict in verdicts.values())
        what = "would be deleted" if dry_run else "deleted"
        render.line(f"{render.plural(len(expired), 'point')} {what}, {kept:,} kept.")
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)


def _show(policy: Policy, as_json: bool) -> None:
    from cas.tasks.retention_text import tier_text

    if as_json:
        render.document({**{name: tier_text(name, tier) for name, tier in policy.tiers}, "zone": policy.zone})
        return
    for name, tier in policy.tiers:
        render.line(f"{name:<8} {tier_text(name, tier)}")
    render.line(f"{'zone':<8} {policy.zone}")
