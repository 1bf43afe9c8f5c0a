"""Programs that are interrupted, or end while something is open."""

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable


def _before_ours() -> None:
    """Run after the library has closed everything: it was registered before."""
    for use in FINALLY:
        use()


FINALLY: list[Callable[[], None]] = []
atexit.register(_before_ours)

from rpc25519_tools.blocking import BlockingClient, BlockingServer  # noqa: E402
from rpc25519_tools.errors import ConnectionLostError  # noqa: E402
from tests.blocking.services import Services, config_of, say  # noqa: E402


def interrupted(certs: str, address: str) -> None:
    """Every wait ends by Ctrl-C, and the client goes on."""
    client = BlockingClient(config_of(certs, address))
    stream, listener = client.download("drip"), client.listen()
    next(stream)
    waits: list[Callable[[], object]] = [
        lambda: client.call("wait", timeout_s=60),
        lambda: next(stream),
        stream.reply,
        listener.next,
    ]
    for wait in waits:
        try:
            say("waiting")
            wait()
        except KeyboardInterrupt:
            say(f"interrupted, {client.call('echo', b'x').payload!r}")
    stream.cancel()
    client.close()


def everything_open(certs: str, address: str) -> None:
    """Leave with a server, clients, streams and calls, also of daemon threads."""
    services = Services()
    server = BlockingServer(config_of(certs), services.registry)
    server.start()
    client = BlockingClient(config_of(certs, address))
    own = BlockingClient(config_of(certs, server.address))
    globals()["kept"] = [client.bistream("upper"), client.download("drip")]
    globals()["kept"] += [own.download("drip"), client.listen(), client, server]

    def call_for_ever() -> None:
        while True:
            client.call("echo", b"x")

    acts: list[Callable[[], object]] = [
        call_for_ever,
        lambda: own.call("wait"),
        lambda: own.call("wait plainly"),
        lambda: client.call("wait"),
        client.listen().next,
    ]
    for act in acts:
        threading.Thread(target=act, daemon=True).start()
    while services.waiting < 3:
        own.call("echo")
    say("leaving")


def at_exit(certs: str, address: str) -> None:
    """Functions of ``atexit`` may still call, and always close."""
    client = BlockingClient(config_of(certs, address))

    def call() -> None:
        say(bytes(client.call("echo", b"still there").payload).decode())

    def closed() -> None:
        for use in (lambda: client.call("echo"), lambda: BlockingClient(config)):
            try:
                use()
            except ConnectionLostError as exc:
                say(exc)
        client.close()

    config = config_of(certs, address)
    atexit.register(call)
    FINALLY.append(closed)


def fails(certs: str, address: str) -> None:
    """Leave by an exception."""
    client = BlockingClient(config_of(certs, address))
    client.call("no such service")


def much_to_send(certs: str, address: str) -> None:
    """Leave when the last message has just been queued."""
    client = BlockingClient(config_of(certs, address, "tcp", compression="none"))
    client.send_one_way("take", bytes(30_000_000))


def deaf_server(certs: str, address: str) -> None:
    """Leave although the server takes nothing of what is queued."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = config_of(certs, f"127.0.0.1:{port}", "tcp", compression="none")
        client = BlockingClient(config)
        silent.accept()[0].detach()
        client.send_one_way("take", bytes(30_000_000))


def nothing_started() -> None:
    """Importing, and making a server, starts no thread and opens nothing."""
    before = os.listdir("/proc/self/fd")
    server = BlockingServer(config_of("nowhere"), Services().registry)
    assert threading.active_count() == 1
    assert os.listdir("/proc/self/fd") == before
    server.stop()
    assert threading.active_count() == 1
    sys.exit(4)
