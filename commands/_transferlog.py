"""What ``srv`` logs: a line for each connection and each transfer."""

from datetime import UTC, datetime

from rpc25519_tools.errors import ConnectionLostError, CrowdedOutError
from rpc25519_tools.files.record import TransferRecord
from rpc25519_tools.identity.certificate import PeerIdentity, peer_identity
from rpc25519_tools.identity.store import LoadedIdentity
from rpc25519_tools.transport.base import Transport

from ._output import Talk, printable
from ._peerlines import PeerLines, peer_name


def rate_mb_s(size_bytes: int, seconds: float) -> float:
    """Return a rate in 10^6 bytes a second; 0 for an immeasurably short time."""
    return size_bytes / 1e6 / seconds if seconds > 0 else 0.0


#: Characters of a file's name that are logged; names from the wire can be any length.
_NAME_LEN = 300
#: Characters of a failure, which may have such a name in it.
_FAILURE_LEN = 500


class ServerLog:
    """Observes a server and its file services.

    Clients that prove nothing, as on plain TCP, have a line once they say something,
    and otherwise none at all; of many from one address only how many: whoever opens
    thousands of connections fills no log.

    Args:
        talk: where the lines go.
        verbose: log echo calls, the end of connections and what protects them too.
    """

    def __init__(self, talk: Talk, *, verbose: bool) -> None:
        self._talk = talk
        self._verbose = verbose
        self._failures = PeerLines(self._line)
        self._begins = PeerLines(self._line)
        self._ends = PeerLines(self._line)
        #: Those that have proved nothing and said nothing.
        self._silent: set[Transport] = set()

    def flush(self) -> None:
        """Log what was only counted so far."""
        self._failures.flush()
        self._begins.flush()
        self._ends.flush()

    def connected(self, transport: Transport) -> None:
        """Log a new connection, unless its client has yet to say something."""
        if transport.peer is None and not self._verbose:
            self._silent.add(transport)
        else:
            self._log_connected(transport)

    def heard(self, transport: Transport) -> None:
        """Learn that a client has sent a message."""
        if transport in self._silent:
            self._silent.remove(transport)
            address = transport.remote_address
            line = f"{_who(address, None)} connected"
            self._begins.tell(peer_name(address, ""), line, "connected")

    def _log_connected(self, transport: Transport) -> None:
        who = _who(transport.remote_address, transport.peer)
        detail = f" ({transport.security})" if self._verbose else ""
        self._line(f"{who} connected{detail}")

    def disconnected(self, transport: Transport, reason: Exception) -> None:
        """Log the end of a connection, if it is unusual or everything is wanted."""
        address = transport.remote_address
        line = f"{_who(address, transport.peer)} disconnected: {reason}"
        crowded = isinstance(reason, CrowdedOutError)
        self._silent.discard(transport)
        if self._verbose:
            self._line(line)
        elif crowded or not isinstance(reason, ConnectionLostError):
            if transport.peer is None:
                self._ends.tell(peer_name(address, ""), line, f"disconnected: {reason}")
            else:
                self._line(line)

    def refused(self, address: str, reason: Exception) -> None:
        """Log a client that was not let in."""
        self._line(f"{address or 'unknown address'} refused: {reason}")

    def identity_reloaded(self, identity: LoadedIdentity) -> None:
        """Log that changed files are in use."""
        certificate = identity.certificate
        who = peer_identity(certificate).describe()
        end = certificate.not_valid_after_utc
        self._line(
            f"new connections get the changed certificate: {who}, serial number "
            f"{certificate.serial_number:x}, valid until {end:%Y-%m-%d}"
        )

    def transfer(self, record: TransferRecord) -> None:
        """Log a transfer when it is over; of many that fail only how many."""
        context = record.context
        who = _who(context.remote_address, context.peer)
        name = f"{record.kind} {printable(record.name[:_NAME_LEN])!r}"
        if record.counts:
            name += f" {record.counts}"
        rate = rate_mb_s(record.size_bytes, record.seconds)
        figures = f"{record.size_bytes} bytes {record.seconds:.3f} s {rate:.1f} MB/s"
        if record.failure is None:
            self._line(f"{who} {name} {figures} ok")
            return
        failed = f"failed: {record.failure[:_FAILURE_LEN]}"
        identity = context.peer.describe() if context.peer else ""
        self._failures.tell(
            peer_name(context.remote_address, identity),
            f"{who} {name} {figures} {failed}",
            f"{name} {failed}",
        )

    def call(self, address: str, peer: PeerIdentity | None, size_bytes: int) -> None:
        """Log an echo call, without its text."""
        if self._verbose:
            self._line(f"{_who(address, peer)} echo call {size_bytes} bytes")

    def _line(self, text: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._talk.say(f"{now} {text}")


def _who(address: str, peer: PeerIdentity | None) -> str:
    return f"{address} {peer.describe() if peer else 'unauthenticated'}"
