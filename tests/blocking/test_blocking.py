"""The library for programs without asyncio: threads, streams, pushes and forks."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rpc25519_tools import CallContext, Config, Registry, Reply, parse_address
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.errors import ConnectionLostError, DeadlineError, RemoteCallError
from rpc25519_tools.rpc.handlers import PlainIncoming, PlainOutgoing
from tests.helpers import wait_until
from tests.rpc.test_netrpc import Args, Arith, Sum


def config(certs: Path, address: str = "127.0.0.1:0") -> Config:
    return Config(address=parse_address(address), certs_dir=str(certs))


def services() -> Registry:
    registry = Registry()
    registry.register(Arith())

    @registry.call("echo")
    def echo(context: CallContext) -> bytes:
        return bytes(context.payload)

    @registry.call("wait")
    def wait(context: CallContext) -> None:
        context.cancellation.wait(20)

    @registry.call("where")
    async def where(context: CallContext) -> bytes:
        return context.remote_address.encode()

    @registry.upload("sum")
    def total(context: CallContext, parts: PlainIncoming) -> bytes:
        return str(sum(len(part.payload) for part in parts)).encode()

    @registry.download("count")
    def count(context: CallContext, out: PlainOutgoing) -> Reply:
        for number in range(3):
            out.send(bytes([number]), last=number == 2)
        return Reply(payload=b"counted")

    @registry.bistream("relay")
    def relay(context: CallContext, parts: PlainIncoming, out: PlainOutgoing) -> None:
        for part in parts:
            out.send(bytes(part.payload).upper(), last=part.last)

    return registry


def test_all_kinds_of_calls(certs: Path) -> None:
    with (
        BlockingServer(config(certs), services()) as server,
        BlockingClient(config(certs, server.address), name="mine") as client,
    ):
        was_down = client.is_down
        assert (client.name, was_down) == ("mine", False)
        assert client.peer is not None
        assert client.call("echo", b"hello").payload == b"hello"
        client.send_one_way("echo", b"nobody listens")
        with client.upload("sum", b"abc") as up:
            up.send(b"de", last=True)
            assert up.reply().payload == b"5"
        with client.download("count") as down:
            assert [bytes(part.payload) for part in down] == [b"\0", b"\1", b"\2"]
            assert down.reply().payload == b"counted"
        with client.bistream("relay", b"a") as both:
            both.send(b"b", last=True)
            assert [bytes(part.payload) for part in both] == [b"A", b"B"]
        assert client.netrpc_call("Arith.Add", Args(1, 2), Sum) == Sum(3)
        futures = [client.netrpc_go("Arith.Mul", Args(n, 2), Sum) for n in range(5)]
        assert [one.result(5) for one in futures] == [Sum(2 * n) for n in range(5)]
        with pytest.raises(RemoteCallError):
            client.netrpc_call("Arith.Nope", Args(), Sum)
        with pytest.raises(DeadlineError):
            client.call("wait", timeout_s=0.05)
        with client.listen("talk") as pushes:
            server.push(client.local_address, "news", b"1", call_id="other")
            server.push(client.local_address, "news", b"2", call_id="talk")
            message = pushes.next(5)
            assert message is not None
            assert message.payload == b"2"
            with pytest.raises(TimeoutError):
                pushes.next(0.02)
        assert [one.remote_address for one in server.clients] == [client.local_address]
    assert client.is_down
    with pytest.raises(ConnectionLostError):
        client.call("echo")


def test_many_threads_share_one_client(certs: Path) -> None:
    with (
        BlockingServer(config(certs), services()) as server,
        BlockingClient(config(certs, server.address)) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        payloads = [str(number).encode() for number in range(500)]
        replies = pool.map(
            lambda one: bytes(client.call("echo", one).payload), payloads
        )
        assert list(replies) == payloads
        assert len(server.clients) == 1


def test_closing_wakes_threads_that_wait(certs: Path) -> None:
    with BlockingServer(config(certs), services(), grace_s=0) as server:
        client = BlockingClient(config(certs, server.address))
        errors: list[Exception] = []

        def wait() -> None:
            try:
                client.call("wait", timeout_s=20)
            except ConnectionLostError as exc:
                errors.append(exc)

        threads = [threading.Thread(target=wait) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(client._client._pending) == 5 if client._client else 0)
        client.close()
        for thread in threads:
            thread.join(5)
        assert len(errors) == 5


def test_a_blocking_call_in_an_async_handler_is_refused(certs: Path) -> None:
    registry = Registry()

    @registry.call("deadlock")
    async def deadlock(context: CallContext) -> bytes:
        return bytes(client.call("echo", b"x").payload)

    with (
        BlockingServer(config(certs), registry) as server,
        BlockingClient(config(certs, server.address)) as client,
        pytest.raises(RemoteCallError, match="a blocking call inside an async"),
    ):
        client.call("deadlock")


def test_importing_starts_nothing() -> None:
    program = (
        "import threading, rpc25519_tools.blocking\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


SERVER = """
import sys
from rpc25519_tools import Config, Registry, parse_address
from rpc25519_tools.blocking import BlockingClient, BlockingServer
from rpc25519_tools.errors import ConnectionLostError
from tests.blocking.test_blocking import config, services
from pathlib import Path
import os, signal, threading, time
certs = Path(sys.argv[1])
address = sys.argv[2]
"""


def run_program(
    certs: Path, address: str, body: str
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "error", "-c"]
    return subprocess.run(
        [*words, SERVER + textwrap.dedent(body), str(certs), address],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parent.parent.parent,
        check=False,
    )


def test_a_forked_child_connects_by_itself(certs: Path) -> None:
    with BlockingServer(config(certs), services()) as server:
        result = run_program(
            certs,
            server.address,
            """
            client = BlockingClient(config(certs, address))
            mine = bytes(client.call("where").payload)
            stream = client.bistream("relay", b"a")
            noise = threading.Thread(
                target=lambda: [client.call("echo", b"n") for _ in range(300)]
            )
            noise.start()
            children = []
            for number in range(3):
                pid = os.fork()
                if pid == 0:
                    theirs = bytes(client.call("where").payload)
                    assert theirs != mine and client.local_address.encode() == theirs
                    try:
                        stream.send(b"x")
                    except ConnectionLostError as exc:
                        assert "parent" in str(exc)
                    else:
                        os._exit(3)
                    for _ in range(50):
                        assert client.call("echo", b"child").payload == b"child"
                    if number == 0:
                        client.close()
                        sys.exit(0)
                    os._exit(0)
                children.append(pid)
                assert bytes(client.call("where").payload) == mine
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            noise.join()
            assert bytes(client.call("where").payload) == mine
            stream.send(b"b", last=True)
            assert [bytes(part.payload) for part in stream] == [b"A", b"B"]
            client.close()
            print("all is well")
            """,
        )
        assert (result.returncode, result.stdout, result.stderr) == (
            0,
            "all is well\n",
            "",
        )


def test_a_child_does_not_keep_the_parents_connection_open(certs: Path) -> None:
    body = """
    from rpc25519_tools.blocking.loop import run
    client = BlockingClient(config(certs, address))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # until the parent ends
        os._exit(0)
    async def cut() -> None:
        client._client.transport.abort()  # no goodbye: only the socket tells
    run(cut())
    print("cut", flush=True)
    sys.stdin.readline()
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    """
    with BlockingServer(config(certs), services()) as server:
        words = [sys.executable, "-c", SERVER + textwrap.dedent(body)]
        with subprocess.Popen(
            [*words, str(certs), server.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "cut\n"
            wait_until(lambda: not server.clients)
            program.stdin.close()
            assert program.wait(10) == 0


def test_ctrl_c_cancels_the_call_and_leaves_the_client_usable(certs: Path) -> None:
    with BlockingServer(config(certs), services()) as server:
        result = run_program(
            certs,
            server.address,
            """
            client = BlockingClient(config(certs, address))
            threading.Timer(
                0.3, lambda: os.kill(os.getpid(), signal.SIGINT)
            ).start()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                client.call("wait", timeout_s=20)
            except KeyboardInterrupt:
                print(client.call("echo", b"usable").payload.decode())
            client.close()
            """,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "usable\n", "")


def test_a_program_ends_with_an_open_client_and_server(certs: Path) -> None:
    with BlockingServer(config(certs), services()) as server:
        result = run_program(
            certs,
            server.address,
            """
            client = BlockingClient(config(certs, address))
            server = BlockingServer(config(certs), services())
            server.start()
            client.call("echo", b"x")
            print("end")
            """,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_a_child_does_not_hold_the_servers_port(certs: Path) -> None:
    result = run_program(
        certs,
        "127.0.0.1:0",
        """
        server = BlockingServer(config(certs), services())
        server.start()
        address = server.address
        client = BlockingClient(config(certs, address))
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        client.close()
        server.stop()
        again = BlockingServer(config(certs, address), services())
        again.start()
        with BlockingClient(config(certs, address)) as client:
            print(client.call("echo", b"same port").payload.decode())
        again.stop()
        os.close(write)
        assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "same port\n", "")
