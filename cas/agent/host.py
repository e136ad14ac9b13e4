"""What tells this computer from another."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Final

from cas.agent.files import write_atomic
from cas.agent.home import Home

_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
SYSTEM: Final = "system"
HOME: Final = "home"


def system_id() -> str | None:
    """The id that the operating system made when it was installed, or None where it has none (many containers)."""
    if sys.platform == "win32":
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography") as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        except OSError:
            return None
    for path in _FILES:
        try:
            found = path.read_text("ascii", "ignore").strip()
        except OSError:
            continue
        if found and found != "uninitialized":
            return found
    return None


def home_id(home: Home, *, make: bool = False) -> str | None:
    """The stand-in where the system has no id: a random number in the home, which a copy of the home takes along.

    Raises NoSpace, CacheUnusable where it has to be made and cannot.
    """
    path = home.root / "host-id"
    try:
        found = path.read_text("ascii", "ignore").strip()
    except OSError:
        found = ""
    if not found and make:
        found = secrets.token_hex(16)
        write_atomic(path, found.encode() + b"\n")
    return found or None


def host_id(home: Home) -> tuple[str, str]:
    """This host's id and where it comes from, SYSTEM or HOME."""
    found = system_id()
    if found is not None:
        return found, SYSTEM
    made = home_id(home, make=True)
    assert made is not None
    return made, HOME
