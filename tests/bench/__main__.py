"""`make bench`: backdrive beside restic and borg on this machine. `ARGS` are those of `tests.bench.peers`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.bench import mounts, peers, startup


def main() -> None:
    """Start-up times first, then the peers and the drives, on a copy of /usr/share unless a source is named."""
    startup.main()
    arguments = sys.argv[1:]
    if any(not argument.startswith("-") for argument in arguments):
        peers.main()
        mounts.main()
        return
    copy = Path("/dev/shm/backdrive-bench-source")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree("/usr/share", copy, symlinks=True)
    sys.argv.insert(1, str(copy))
    try:
        peers.main()
        mounts.main()
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()
