"""Where this machine keeps its own files.

`BACKDRIVE_HOME` names the directory. Without it, it is where the platform keeps the state of programs: for root on
Linux `/var/lib/backdrive`, for others `~/.local/state/backdrive` (or `$XDG_STATE_HOME/backdrive`), on Windows
`%LOCALAPPDATA%\\backdrive`. State, not data: it belongs to one machine and is of no use on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The machine's directory, 0700, and the places in it. Nothing is made before something is written."""

    root: Path

    @property
    def registrations(self) -> Path:
        """One JSON file a registered vault."""
        return self.root / "registrations"

    @property
    def keys(self) -> Path:
        """One sealed repository secret a registered vault."""
        return self.root / "keys"

    @property
    def cache(self) -> Path:
        """What the vault holds too: may be removed at any time."""
        return self.root / "cache"

    @property
    def jobs(self) -> Path:
        """One JSON record a job."""
        return self.root / "jobs"

    @property
    def drives(self) -> Path:
        """What is known of the drives that run in the background."""
        return self.root / "drives"

    @property
    def logs(self) -> Path:
        """Logs of drives, and of faults in backdrive itself."""
        return self.root / "logs"


def find_home(environment: Mapping[str, str]) -> Home:
    """The home that the environment names, or the platform's."""
    named = environment.get("BACKDRIVE_HOME", "")
    if named:
        return Home(Path(named).absolute())
    from platformdirs import user_state_path  # only needed here

    return Home(user_state_path("backdrive", appauthor=False, use_site_for_root=True))
