"""A UDP socket that takes and gives many datagrams at a time.

A system call costs as much as a short datagram's encryption. Where the kernel can
(Linux), several datagrams of one size and for one peer go out in one call, and come in
in one (UDP_SEGMENT and UDP_GRO of udp(7)). Datagrams are never fragmented: one that is
too long for the path gets lost, or is refused at once.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

#: A socket's address.
Endpoint = tuple[Any, ...]

#: Linux, udp.h.
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
#: Linux, in.h and in6.h: never fragment, and do not mind what is known of the path.
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
#: Linux, in.h and in6.h: queue errors that come back from the network.
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
#: Linux, socket.h: beyond the limit for usual programs, for those that may.
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

#: Memory for what has not been taken yet; the system may give less.
_BUFFER_LEN: Final = 4 << 20
#: Longest datagram that UDP has.
_LONGEST_LEN: Final = 65535
#: Most datagrams, and bytes, that go out in one call.
_BATCH: Final = 64
_BATCH_LEN: Final = 65000
#: Most errors of earlier datagrams that are passed over in one go.
_MOST_REFUSALS: Final = 16
#: Most calls that take datagrams before something else gets its turn.
_CALLS: Final = 32

_CONTROL_LEN: Final = socket.CMSG_SPACE(4)
_IS_LINUX: Final = hasattr(socket, "MSG_ERRQUEUE")
#: Linux, errqueue.h, struct sock_extended_err: the error, and more.
_ERROR: Final = struct.Struct("IBBBBII")


@dataclass(frozen=True, slots=True)
class Sent:
    """What has become of some datagrams.

    Attributes:
        count: so many are done with, sent or lost; the rest has to wait for room.
        too_long: the sizes of those that the system refused as too long.
    """

    count: int
    too_long: tuple[int, ...] = ()


class UdpSocket:
    """A bound socket, never blocking.

    Args:
        family: ``socket.AF_INET`` or ``socket.AF_INET6``.
        address: what to bind to.

    Raises:
        OSError: it cannot be had.
    """

    def __init__(self, family: int, address: Endpoint) -> None:
        self._sock = sock = socket.socket(family, socket.SOCK_DGRAM)
        self.family = family
        self._segments = self._coalesces = False
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
        self._set_up(family)
        self.address: Endpoint = sock.getsockname()

    def _set_up(self, family: int) -> None:
        """Ask for what makes it better, where the system has that."""
        level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
        six = family == socket.AF_INET6
        self._try(
            level, _IPV6_MTU_DISCOVER if six else _IP_MTU_DISCOVER, _PMTUDISC_PROBE
        )
        self._try(level, _IPV6_RECVERR if six else _IP_RECVERR, 1)
        for usual, forced in (
            (socket.SO_SNDBUF, _SO_SNDBUFFORCE),
            (socket.SO_RCVBUF, _SO_RCVBUFFORCE),
        ):
            if not self._try(socket.SOL_SOCKET, forced, _BUFFER_LEN):
                self._try(socket.SOL_SOCKET, usual, _BUFFER_LEN)
        self._segments = self._try(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)
        self._coalesces = self._try(socket.IPPROTO_UDP, _UDP_GRO, 1)

    def _try(self, level: int, option: int, value: int) -> bool:
        if not _IS_LINUX and option not in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            return False
        try:
            self._sock.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        """Return the descriptor, -1 once it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close it; doing so again changes nothing."""
        self._sock.close()

    def __del__(self) -> None:
        """Close it without a word: a loop may end while farewells can be repeated."""
        if hasattr(self, "_sock"):
            self._sock.close()

    def receive(self) -> tuple[list[tuple[bytes, Endpoint]], list[Endpoint]]:
        """Take what has come, as far as some calls bring it.

        Returns:
            The datagrams with the addresses that they came from, and the addresses at
            which nobody listens, as the network says.
        """
        taken: list[tuple[bytes, Endpoint]] = []
        deaf: list[Endpoint] = []
        for _ in range(_CALLS):
            try:
                if not self._coalesces:
                    taken.append(self._sock.recvfrom(_LONGEST_LEN))
                    continue
                data, control, _, source = self._sock.recvmsg(
                    _LONGEST_LEN, _CONTROL_LEN
                )
            except BlockingIOError:
                if not taken:  # woken by an error that ``send`` has met already
                    deaf += self._deaf()
                break
            except OSError:
                deaf += self._deaf()  # an error of an earlier datagram
                continue
            size = len(data)
            for level, kind, value in control:
                if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
                    size = struct.unpack_from("i", value)[0] or size
            if size >= len(data):
                taken.append((data, source))
            else:
                taken += [
                    (data[start : start + size], source)
                    for start in range(0, len(data), size)
                ]
        return taken, deaf

    def _deaf(self) -> list[Endpoint]:
        """Return whom datagrams did not reach since nobody listens there."""
        found: list[Endpoint] = []
        if not _IS_LINUX:
            return found
        with contextlib.suppress(OSError):
            while len(found) < _BATCH:
                _, control, _, peer = self._sock.recvmsg(
                    0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
                for _, _, value in control:
                    if (
                        len(value) >= _ERROR.size
                        and _ERROR.unpack_from(value)[0] == errno.ECONNREFUSED
                    ):
                        found.append(peer)
        return found

    def send(self, datagrams: Sequence[tuple[bytes, Endpoint]]) -> Sent:
        """Send datagrams in order, as far as the system has room.

        What cannot be sent for another reason counts as lost on its way.
        """
        done = refusals = 0
        too_long: list[int] = []
        while done < len(datagrams):
            count = self._run_len(datagrams, done) if self._segments else 1
            data, target = datagrams[done]
            try:
                if count == 1:
                    self._sock.sendto(data, target)
                else:
                    size = struct.pack("H", len(data))
                    self._sock.sendmsg(
                        [one for one, _ in datagrams[done : done + count]],
                        [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)],
                        0,
                        target,
                    )
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                # An earlier datagram met nobody, perhaps one of another connection;
                # this one has not been looked at. ``receive`` tells who is deaf.
                refusals += 1
                if refusals <= _MOST_REFUSALS:
                    continue
            except OSError as exc:
                if exc.errno == errno.EMSGSIZE:
                    too_long.append(len(data))
                elif count > 1 and exc.errno in (errno.EIO, errno.EINVAL):
                    self._segments = False  # not for this device
                    continue
            done += count
        return Sent(done, tuple(too_long))

    @staticmethod
    def _run_len(datagrams: Sequence[tuple[bytes, Endpoint]], start: int) -> int:
        """Return how many datagrams from ``start`` on can go out together.

        All but the last one have the same size, the last one may be shorter.
        """
        first, target = datagrams[start]
        size = total = len(first)
        stop = min(len(datagrams), start + _BATCH)
        for index in range(start + 1, stop):
            data, other = datagrams[index]
            length = len(data)
            if length > size or other != target or total + length > _BATCH_LEN:
                return index - start
            if length < size:
                return index - start + 1
            total += length
        return stop - start
