"""The two programs: ours, and rsync over ssh, each with a running server."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from _sshd import Sshd
from _sync_wire import Address

#: What both write to, below their own directories.
TARGET = "copy"


class Ours:
    """``cli -push`` against a running ``srv``.

    Attributes:
        name: for the table.
        address: of the server.
        target: where the copy appears.
    """

    name = "ours"

    def __init__(
        self,
        programs: Path,
        top: Path,
        server: "subprocess.Popen[str]",
        address: Address,
    ) -> None:
        self._cli = programs / "cli"
        self._certs = top / "certs"
        self._server = server
        self.address = address
        self.target = top / "served" / TARGET

    def push(self, source: Path, address: Address) -> list[str]:
        """Return the command that brings what is in ``source`` to the target."""
        host, port = address
        words = [self._cli, "-s", f"{host}:{port}", "-certs", self._certs, "-quiet"]
        words += ["-a", "-push", f"{source}/", "--to", TARGET]
        return list(map(str, words))

    def forget_memory(self) -> None:
        """Let the server's peak memory begin anew."""
        Path(f"/proc/{self._server.pid}/clear_refs").write_text("5")

    def server_mb(self) -> float:
        """Return the server's peak memory in MB."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6


class Rsync:
    """``rsync -a`` by way of ssh; attributes as those of `Ours`."""

    name = "rsync"

    def __init__(self, top: Path, sshd: Sshd) -> None:
        self._sshd = sshd
        self.address = (sshd.host, sshd.port)
        self.target = top / "by-rsync" / TARGET
        self.target.parent.mkdir(exist_ok=True)

    def push(self, source: Path, address: Address) -> list[str]:
        return self._sshd.rsync(f"{source}/", f"{self.target}/", address)


Peer = Ours | Rsync


def pushes(programs: Path) -> bool:
    """Tell whether the installed ``cli`` can push trees."""
    done = subprocess.run(
        [programs / "cli", "--help"], capture_output=True, text=True, check=True
    )
    return "--push" in done.stdout


@contextlib.contextmanager
def our_server(
    programs: Path, top: Path, *, host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[Ours]:
    """Run ``srv`` with certificates made for this run.

    Args:
        programs: where the programs are.
        top: gets the certificates and the served directory.
        host: the address to listen on.
        prefix: what runs it, such as ``ip netns exec NAME``.
    """
    served = top / "served"
    served.mkdir(exist_ok=True)
    if not (top / "certs").exists():
        for key in ("node", "client"):
            words = ("-k", key, "-e", f"{key}@bench", "-nopass", "-quiet")
            subprocess.run([programs / "selfy", *words], cwd=top, check=True)
    words = ("-serve", "served", "-readfile", "served", "-k", "node", "-certs", "certs")
    with subprocess.Popen(
        [*prefix, programs / "srv", *words, "-s", f"{host}:0", "-quiet"],
        cwd=top,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                raise SystemExit("srv did not start")
            port = int(line.split()[3].rpartition(":")[2])
            yield Ours(programs, top, server, (host, port))
        finally:
            server.terminate()
