"""Names of users and groups on this machine.

All of this blocks: the system may ask a directory service.
"""

import grp
import pwd

from rpc25519_tools.sync.list_records import MAX_OWNER_LEN


def user_name(uid: int) -> str:
    """Return the name of a user; empty where the number has none."""
    try:
        return _clean(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError, OSError):
        return ""


def group_name(gid: int) -> str:
    """Return the name of a group; empty where the number has none."""
    try:
        return _clean(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError, OSError):
        return ""


def _clean(name: str) -> str:
    """Return a name as the wire takes it: short, and UTF-8 whatever the system has."""
    return name.encode("utf-8", "replace").decode()[:MAX_OWNER_LEN]
