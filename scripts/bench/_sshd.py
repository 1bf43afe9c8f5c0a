"""A private sshd, to measure scp and rsync against."""

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CIPHER = "chacha20-poly1305@openssh.com"
_START_TIMEOUT_S = 10


@dataclass(frozen=True)
class Sshd:
    """A running server: where it is, and the client's options to reach it."""

    port: int
    directory: Path
    host: str = "127.0.0.1"

    @property
    def options(self) -> list[str]:
        """The options of ssh and scp, but for the port."""
        words = ["-i", str(self.directory / "key")]
        for option in (
            f"Ciphers={CIPHER}",
            "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={self.directory / 'known_hosts'}",
            "Compression=no",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ):
            words += ["-o", option]
        return words

    def scp(self, source: str, target: str) -> list[str]:
        """Return the command that copies between ``source`` and ``target``.

        The remote side is written as ``remote:PATH``.
        """
        remote = f"{getpass.getuser()}@{self.host}:"
        return [
            *("scp", "-q", "-P", str(self.port), *self.options),
            source.replace("remote:", remote, 1),
            target.replace("remote:", remote, 1),
        ]

    def rsync(self, source: str, target: str, address: tuple[str, int]) -> list[str]:
        """Return the command ``rsync -a`` by way of ssh, to a path at ``address``."""
        host, port = address
        shell = shlex.join(["ssh", "-p", str(port), *self.options])
        remote = f"{getpass.getuser()}@{host}:{target}"
        return ["rsync", "-a", "-e", shell, source, remote]


def find_sshd() -> str | None:
    """Return the path of sshd, after an attempt to install it; None without one."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (("update", "-q"), ("install", "-qy", "openssh-server")):
            subprocess.run(["apt-get", *words], check=False, stdout=sys.stderr)
        path = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    return path


@contextlib.contextmanager
def running_sshd(
    program: str,
    directory: Path,
    *,
    host: str = "127.0.0.1",
    prefix: Sequence[str] = (),
) -> Iterator[Sshd]:
    """Start sshd on a free port, with keys made for this run.

    Args:
        program: its path.
        directory: gets its keys and its configuration.
        host: the address to listen on.
        prefix: what runs it, such as ``ip netns exec NAME``.
    """
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name],
            check=True,
        )
    shutil.copy(directory / "key.pub", directory / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress {host}\nHostKey {directory / 'host'}\n"
        f"AuthorizedKeysFile {directory / 'authorized_keys'}\nStrictModes no\n"
        f"PasswordAuthentication no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"Ciphers {CIPHER}\nPidFile none\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen(
        [*prefix, program, "-D", "-e", "-f", str(config)],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if "listening" in line:
                    break
            else:
                raise SystemExit("sshd did not start")
            yield Sshd(port, directory, host)
        finally:
            server.terminate()
