"""What tests of mistakes have in common: exit codes, and copies to spoil."""

import shutil
from pathlib import Path

USAGE, NETWORK, TRUST, PROTOCOL, FILES, FAILED = 2, 3, 4, 5, 6, 1


def copied(certs: Path, target: Path) -> Path:
    shutil.copytree(certs, target / "certs")
    return target / "certs"
