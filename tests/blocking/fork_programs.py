"""Programs that fork; each runs in a process of its own, see ``Program``.

A child that finds something wrong raises, so that its traceback and its exit code tell
the test.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rpc25519_tools import CallContext, Registry
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.blocking import loop as loop_module
from rpc25519_tools.errors import ConnectionLostError
from tests.blocking.services import (
    Pair,
    Services,
    config_of,
    say,
    tcp_sockets,
    udp_sockets,
)


def fork(child: Callable[[], object]) -> int:
    """Run ``child`` in a child that then leaves without any ceremony."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:  # noqa: BLE001  # shown, and told by the exit code
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def join(*pids: int) -> None:
    for pid in pids:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"a child ended with {status}"


@contextlib.contextmanager
def in_threads(count: int, act: Callable[[], object]) -> Iterator[None]:
    """Let threads act over and over."""
    over = threading.Event()
    began = threading.Semaphore(0)

    def work() -> None:
        while not over.is_set():
            act()
            began.release()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        began.acquire()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def where(client: BlockingClient) -> str:
    return bytes(client.call("where").payload).decode()


def refused(use: Callable[[], object]) -> None:
    text = "nothing was raised"
    try:
        use()
    except ConnectionLostError as exc:
        text = str(exc)
    assert "parent process" in text, text


def connections(certs: str, address: str) -> None:
    """The child connects anew, with keys from memory; the parent goes on."""
    own_certs = Path(certs).with_name("for-a-while")
    own_certs.mkdir()
    for file in Path(certs).iterdir():
        (own_certs / file.name).write_bytes(file.read_bytes())
    client = BlockingClient(config_of(own_certs, address))
    for file in own_certs.iterdir():
        file.unlink()
    own_certs.rmdir()
    mine = where(client)
    # Threads pack and unpack this, and none of them survives the fork.
    long = os.urandom(100_000)
    assert client.call("echo", long).payload == long

    def child() -> None:
        assert not tcp_sockets()
        assert not client.is_down
        theirs = where(client)
        assert theirs == client.local_address != mine
        assert len(tcp_sockets()) == 1
        for _ in range(20):
            assert client.call("echo", b"child").payload == b"child"
        assert client.call("echo", long).payload == long
        say(theirs)
        sys.stdin.readline()
        assert where(client) == theirs

    pid = fork(child)
    for _ in range(20):
        assert client.call("echo", b"parent").payload == b"parent"
    assert where(client) == client.local_address == mine
    join(pid)
    assert where(client) == mine
    client.close()


def descent(certs: str, address: str) -> None:
    """Every generation has a connection of its own; ends are ordinary ones."""
    with BlockingClient(config_of(certs, address)) as client:
        mine = where(client)
        for generation in range(3):
            pid = os.fork()
            if pid:
                join(pid)
                assert where(client) == mine
                say(f"{generation} {mine}")
                sys.exit()
            assert not tcp_sockets()
            mine = where(client)


def leftovers(certs: str, address: str) -> None:
    """What the parent has open is refused in the child, and works in the parent."""
    client = BlockingClient(config_of(certs, address))
    both, down = client.bistream("upper", b"a"), client.download("count", b"9")
    assert next(both).payload == b"A"
    assert next(down).payload == b"0"  # and more have come with it
    listener = client.listen()
    future = client.netrpc_go("Maths.wait", Pair(), Pair)

    def child() -> None:
        for use in (
            lambda: both.send(b"x"),
            lambda: next(both),
            both.reply,
            lambda: next(down),
            listener.next,
            lambda: next(listener),
            future.result,
            future.exception,
        ):
            refused(use)
        future.cancel()
        both.cancel()
        listener.close()
        assert client.call("echo", b"x").payload == b"x"
        refused(lambda: next(both))
        client.close()
        # Whatever may be done to the parent's loop here does nothing there.
        left: Any = loop_module._left[0]
        left.remove_reader(left._ssock.fileno())

    join(fork(child))
    both.send(b"b", last=True)
    assert [part.payload for part in both] == [b"B"]
    assert len(list(down)) == 8
    assert not future.done()
    future.cancel()
    client.close()


def closing(certs: str, address: str) -> None:
    """The server sees at once that the parent has gone, while the child lives."""
    client = BlockingClient(config_of(certs, address))
    fork(sys.stdin.readline)
    assert client.call("echo", b"x").payload == b"x"
    say("ready")
    signal.pause()


def busy_threads(certs: str, address: str) -> None:
    """Forks in the midst of calls, of connecting and of closing."""
    config = config_of(certs, address)
    client = BlockingClient(config)
    long = os.urandom(50_000)

    def child() -> None:
        assert not tcp_sockets()
        assert client.call("echo", long).payload == long

    def connect_and_close() -> None:
        with BlockingClient(config) as other:
            other.call("echo", b"x")

    with (
        in_threads(3, lambda: client.call("echo", long)),
        in_threads(2, connect_and_close),
    ):
        for _ in range(8):
            join(*[fork(child) for _ in range(3)])
    client.close()


def several_forking_threads(certs: str, address: str) -> None:
    """Threads fork at the same time; each child is all right."""
    client = BlockingClient(config_of(certs, address))
    forks = [
        threading.Thread(target=lambda: join(*[fork(child) for _ in range(5)]))
        for _ in range(4)
    ]

    def child() -> None:
        assert not tcp_sockets()
        assert client.call("echo", b"x").payload == b"x"

    for thread in forks:
        thread.start()
    for thread in forks:
        thread.join()
    client.close()
    say("joined")


def ordinary_end(certs: str, address: str) -> None:
    """A child ends by sys.exit, in the midst of everything that its parent does."""
    services = Services()
    registry = services.registry

    @registry.call("tidy")
    async def tidy(context: CallContext) -> None:
        try:
            await services.wait_for_ever()
        finally:
            say(f"tidied by {'parent' if os.getpid() == parent else 'child'}")

    @registry.one_way("at-exit")
    def ignore(context: CallContext) -> None:
        """Only registered."""

    parent = os.getpid()
    server = BlockingServer(config_of(certs), registry)
    with server, BlockingClient(config_of(certs, server.address)) as client:
        calls = [
            threading.Thread(target=ended, args=(client, name))
            for name in ("tidy", "wait", "wait plainly")
        ]
        for thread in calls:
            thread.start()
        stream, listener = client.download("drip"), client.listen()
        assert next(stream).payload == b"drop"
        while services.waiting < 4:
            client.call("echo")
        for use_client in (True, False):
            pid = os.fork()
            if pid == 0:
                if use_client:
                    assert client.call("echo", b"x").payload == b"x"
                atexit.register(say, "child ends")
                sys.exit(0)
            join(pid)
        assert len(server.clients) == 1
        assert client.call("echo", b"x").payload == b"x"
        listener.close()
        client.close()
        for thread in calls:
            thread.join()
        server.stop()
    say("parent ends")


def ended(client: BlockingClient, name: str) -> None:
    with suppress(ConnectionLostError):
        client.call(name)


def over_quic(certs: str, address: str) -> None:
    """A child has no UDP socket of its parent, whose connections go on."""
    services = Services()
    config = config_of(certs, network="quic")
    with (
        BlockingServer(config, services.registry, services) as server,
        BlockingClient(config_of(certs, server.address, "quic")) as client,
    ):
        theirs = where(client)
        assert len(udp_sockets()) == 2

        def child() -> None:
            assert not udp_sockets()
            refused(lambda: server.clients)

        join(fork(child))
        assert where(client) == theirs


def server_process(certs: str, address: str) -> None:
    """A child has neither the address nor any client's connection."""
    services = Services()
    server = BlockingServer(config_of(certs), services.registry, services)
    server.start()
    client = BlockingClient(config_of(certs, server.address))
    host, _, port = server.address.rpartition(":")
    say(server.address)
    sys.stdin.readline()  # the test has connected by now
    # One more is in its handshake, for ever.
    with socket.create_connection((host, int(port))) as stranger:
        while len(tcp_sockets()) < 6:
            where(client)

        def child() -> None:
            stranger.close()
            assert not tcp_sockets()
            refused(lambda: server.clients)
            refused(lambda: server.push("127.0.0.1:1", "news"))
            server.stop()
            own = BlockingServer(config_of(certs), services.registry)
            with own, BlockingClient(config_of(certs, own.address)) as to_own:
                assert to_own.call("echo", b"x").payload == b"x"
            assert client.call("echo", b"x").payload == b"x"
            server.start()  # one of the child's own
            assert server.address != address_of_parent
            with BlockingClient(config_of(certs, server.address)) as to_own:
                assert where(to_own) == to_own.local_address
            say("child is ready")
            os.close(write)
            os.read(read, 1)  # until the parent closes its end

        address_of_parent = server.address
        read, write = os.pipe()
        pid = fork(child)
        sys.stdin.readline()
        server.stop()
        again = BlockingServer(config_of(certs, address_of_parent), services.registry)
        with again, BlockingClient(config_of(certs, again.address)) as client:
            say(f"served again, {client.call('echo', b'x').payload!r}")
        os.close(write)
        join(pid)


def server_is_killed(certs: str, address: str) -> None:
    """The parent dies; its clients see that although the child lives."""
    server = BlockingServer(config_of(certs), Services().registry)
    server.start()
    say(server.address)
    sys.stdin.readline()
    fork(sys.stdin.readline)
    say("ready")
    signal.pause()


def handlers_that_fork(certs: str, address: str) -> None:
    """Children of a plain handler, of an async one, and of a signal's."""
    registry = Registry()
    client = BlockingClient(config_of(certs, address))

    def child() -> None:
        assert not tcp_sockets()
        assert client.call("echo", b"x").payload == b"x"

    @registry.call("plain")
    def plain(context: CallContext) -> None:
        join(fork(child))

    @registry.call("async")
    async def leave_at_once(context: CallContext) -> None:
        join(fork(lambda: None))

    @registry.call("signal")
    async def alarm(context: CallContext) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda *_: join(fork(child)))
    with (
        BlockingServer(config_of(certs), registry) as server,
        BlockingClient(config_of(certs, server.address)) as caller,
    ):
        caller.call("plain")
        caller.call("async")
        caller.call("signal")
        assert not caller.is_down
    client.close()
    say("handled")


def busy_loop(certs: str, address: str) -> None:
    """A fork waits for the loop to end its step, but not for ever."""
    registry, started, go_on = Registry(), threading.Event(), threading.Event()
    steps = 0

    @registry.call("block")
    async def block(context: CallContext) -> None:
        nonlocal steps
        started.set()
        go_on.wait(float(bytes(context.payload)))
        steps += 1

    def child() -> None:
        assert not tcp_sockets()
        assert steps == 1, steps

    with (
        BlockingServer(config_of(certs), registry) as server,
        BlockingClient(config_of(certs, server.address)) as client,
    ):
        for blocked_s, patience_s in ((b"0.2", 60.0), (b"60", 0.1)):
            vars(loop_module)["_REST_TIMEOUT_S"] = patience_s
            started.clear()
            go_on.clear()
            thread = threading.Thread(target=client.call, args=("block", blocked_s))
            thread.start()
            started.wait()
            join(fork(child))
            go_on.set()
            thread.join()
    say("not blocked")


def workers(certs: str, address: str) -> None:
    """multiprocessing's children, which leave in their own way."""
    client = BlockingClient(config_of(certs, address))
    context = multiprocessing.get_context("fork")
    with context.Pool(2, initializer=globals().update, initargs=({"_c": client},)) as p:
        results = p.map(_call_in_worker, range(20))
        assert len({address for _, address in results}) <= 2
        assert [number for number, _ in results] == list(range(20))
    assert where(client) == client.local_address
    client.close()


def _call_in_worker(number: int) -> tuple[int, str]:
    client: BlockingClient = globals()["_c"]
    assert client.call("echo", b"%d" % number).payload == b"%d" % number
    return number, client.local_address


def closed_before(certs: str, address: str) -> None:
    """A client that the parent has closed stays closed in the child."""
    client = BlockingClient(config_of(certs, address))
    client.close()

    def child() -> None:
        client.close()
        assert client.is_down
        with suppress(ConnectionLostError):
            client.call("echo")
            raise AssertionError("it is closed")
        assert threading.active_count() == 2

    join(fork(child))


def no_loop(certs: str, address: str) -> None:
    """A fork before anything was opened."""
    server = BlockingServer(config_of(certs), Services().registry)

    def child() -> None:
        with server, BlockingClient(config_of(certs, server.address)) as client:
            assert client.call("echo", b"x").payload == b"x"

    join(fork(child), fork(child))
    assert threading.active_count() == 1
