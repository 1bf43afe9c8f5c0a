"""What a sync shall do: the settings that both sides have to know."""

import stat
from typing import Annotated, Final

import msgspec

from rpc25519_tools.errors import ConfigError
from rpc25519_tools.sync.filters import MAX_RULES, Rule

#: Bytes of a path in a request; PATH_MAX of Linux.
MAX_PATH_LEN: Final = 4096
#: Paths in a request.
MAX_PATHS: Final = 10_000

_Path = Annotated[bytes, msgspec.Meta(max_length=MAX_PATH_LEN)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class SyncOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a sync shall do; names and meanings are those of rsync's long options.

    Attributes:
        recursive: descend into directories.
        links: make symbolic links; without it they are skipped.
        perms: set permission bits; without it new files get those of the source less
            the umask, and existing ones keep theirs.
        times: set times of change, to the nanosecond.
        owner: set the owner, where the receiver may.
        group: likewise the group.
        numeric_ids: do not map owners by name.
        hard_links: make hard links of what are hard links in the source.
        sparse: leave out long runs of zeros when writing.
        specials: make FIFOs and sockets.
        devices: make device files, where the receiver may.
        delete: remove what the source does not have.
        delete_excluded: also what the rules exclude.
        max_delete: remove no more than so many; None: any number.
        dry_run: change nothing, only tell.
        checksum: compare contents instead of size and time.
        size_only: compare sizes alone.
        ignore_times: transfer also what has the same size and time.
        existing: make nothing new.
        ignore_existing: change nothing that is there.
        update: keep what is newer at the destination.
        backup_dir: keep what is replaced or removed here, relative to the destination;
            None: do not.
        rules: what is included and excluded.
        fsync: what is reported as done survives a power failure.
        whole_file: send files whole, without a look at what is there.
        bandwidth: bytes a second that the sender may send; 0: any number.
    """

    recursive: bool = False
    links: bool = False
    perms: bool = False
    times: bool = False
    owner: bool = False
    group: bool = False
    numeric_ids: bool = False
    hard_links: bool = False
    sparse: bool = False
    specials: bool = False
    devices: bool = False
    delete: bool = False
    delete_excluded: bool = False
    max_delete: _Count | None = None
    dry_run: bool = False
    checksum: bool = False
    size_only: bool = False
    ignore_times: bool = False
    existing: bool = False
    ignore_existing: bool = False
    update: bool = False
    backup_dir: _Path | None = None
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)] = ()
    fsync: bool = True
    whole_file: bool = False
    bandwidth: _Count = 0

    def takes(self, mode: int) -> bool:
        """Tell whether things of a kind are transferred at all.

        Args:
            mode: ``st_mode``.
        """
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return True
        if stat.S_ISLNK(mode):
            return self.links
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            return self.specials
        return self.devices

    def check(self) -> None:
        """Refuse what makes no sense together.

        Raises:
            ConfigError: two settings contradict each other.
        """
        if self.delete and not self.recursive:
            raise ConfigError("--delete needs -r (or -a): what is to be compared?")
        if self.delete_excluded and not self.delete:
            raise ConfigError("--delete-excluded goes with --delete")
        if self.max_delete is not None and not self.delete:
            raise ConfigError("--max-delete goes with --delete")
        if self.size_only and self.checksum:
            raise ConfigError("give only one of --size-only and --checksum")
