"""The two ends of the RPC benchmark, for this package and for grpcio.

    _rpc_peers.py serve STACK DIR         prints the port, serves until it is killed
    _rpc_peers.py call STACK DIR PORT PAYLOAD_LEN IN_FLIGHT CONNECTIONS SECONDS
                                          prints one JSON object

STACK is ``ours``, ``ours-uvloop``, ``bare`` (see _rpc_floor.py), ``bare-uvloop``,
``grpc-sync`` or ``grpc-aio``. All use TLS with
certificates on both sides, from DIR: ours its own ed25519 ones, grpcio (which takes no
ed25519) ECDSA ones.
The service echoes its payload.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

_WARM_UP_S = 0.3


def main() -> None:
    """Run one end."""
    what, stack, directory, *rest = sys.argv[1:]
    if stack.endswith("-uvloop"):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        stack = stack.removesuffix("-uvloop")
    serve, call = ends_of(stack)
    if what == "serve":
        serve(Path(directory))
        return
    port, payload_len, in_flight, connections = map(int, rest[:4])
    latencies, seconds = call(
        Path(directory),
        port,
        bytes(payload_len),
        in_flight,
        connections,
        float(rest[4]),
    )
    latencies.sort()
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    result = {
        name: latencies[int(share * (len(latencies) - 1))] * 1e6
        for name, share in shares.items()
    }
    print(json.dumps({"calls_per_s": len(latencies) / seconds, **result}))


def ends_of(stack: str) -> tuple[Callable[..., None], "Callable[..., Latencies]"]:
    """Return what serves and what calls."""
    if stack == "bare":
        import _rpc_floor

        return _rpc_floor.serve, _rpc_floor.call
    return {
        "ours": (serve_ours, call_ours),
        "grpc-sync": (serve_grpc, call_grpc),
        "grpc-aio": (serve_grpc_aio, call_grpc_aio),
    }[stack]


Latencies = tuple[list[float], float]
Step = Callable[[], Awaitable[object]]


async def pump(steps: list[Step], in_flight: int, seconds: float) -> Latencies:
    """Keep ``in_flight`` calls going, spread over ``steps``, and time them."""
    latencies: list[float] = []

    async def worker(step: Step, until: float) -> None:
        while (start := time.perf_counter()) < until:
            await step()
            latencies.append(time.perf_counter() - start)

    async def all_until(until: float) -> None:
        workers = (steps[number % len(steps)] for number in range(in_flight))
        await asyncio.gather(*(worker(step, until) for step in workers))

    await all_until(time.perf_counter() + _WARM_UP_S)
    latencies.clear()
    start = time.perf_counter()
    await all_until(start + seconds)
    return latencies, time.perf_counter() - start


def ours_config(directory: Path, port: int) -> Any:
    """Return the Config of either end."""
    from rpc25519_tools import Address, Config, Limits

    return Config(
        address=Address("127.0.0.1", port),
        certs_dir=str(directory / "certs"),
        compression="none",
        limits=Limits(max_connections_per_address=4096),  # all of ours have one
    )


def serve_ours(directory: Path) -> None:
    """Serve with this package."""
    from rpc25519_tools import CallContext, Registry, Server

    registry = Registry()

    @registry.call("echo")
    async def echo(context: CallContext) -> Any:
        return context.payload

    async def serve() -> None:
        async with Server(ours_config(directory, 0), registry) as server:
            print(server.address.rpartition(":")[2], flush=True)
            await asyncio.Event().wait()

    asyncio.run(serve())


def call_ours(
    directory: Path,
    port: int,
    payload: bytes,
    in_flight: int,
    connections: int,
    seconds: float,
) -> Latencies:
    """Call with this package."""
    from rpc25519_tools import Client

    async def run() -> Latencies:
        clients = [
            await Client.connect(ours_config(directory, port))
            for _ in range(connections)
        ]

        def step_of(client: Client) -> Step:
            return lambda: client.call("echo", payload)

        steps = [step_of(client) for client in clients]
        try:
            return await pump(steps, in_flight, seconds)
        finally:
            for client in clients:
                await client.aclose()

    return asyncio.run(run())


def make_grpc_certs(directory: Path) -> None:
    """Write an ECDSA key and its own certificate, which is also its authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "grpc.key").write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (directory / "grpc.crt").write_bytes(certificate.public_bytes(pem))


def grpc_pair(directory: Path) -> tuple[bytes, bytes]:
    """Return the key and the certificate."""
    return (
        (directory / "grpc.key").read_bytes(),
        (directory / "grpc.crt").read_bytes(),
    )


def grpc_handler(function: Any) -> Any:
    """Return the service of one echo method."""
    import grpc

    method = grpc.unary_unary_rpc_method_handler(function)
    return grpc.method_handlers_generic_handler("Bench", {"echo": method})


def grpc_server_credentials(directory: Path) -> Any:
    """Return credentials that demand a client's certificate."""
    import grpc

    key, certificate = grpc_pair(directory)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=certificate, require_client_auth=True
    )


def grpc_channel_arguments(directory: Path, number: int) -> tuple[Any, Any]:
    """Return credentials and options; each number gets a connection of its own."""
    import grpc

    key, certificate = grpc_pair(directory)
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("bench.connection", number),
    ]
    return grpc.ssl_channel_credentials(certificate, key, certificate), options


def serve_grpc(directory: Path) -> None:
    """Serve with grpcio and threads."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((grpc_handler(lambda data, context: data),))
    port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(directory))
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def serve_grpc_aio(directory: Path) -> None:
    """Serve with grpcio on asyncio."""
    import grpc.aio

    async def echo(data: bytes, context: object) -> bytes:
        return data

    async def serve() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc_handler(echo),))
        credentials = grpc_server_credentials(directory)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()

    asyncio.run(serve())


def call_grpc(
    directory: Path,
    port: int,
    payload: bytes,
    in_flight: int,
    connections: int,
    seconds: float,
) -> Latencies:
    """Call with grpcio, a thread for each call in flight."""
    import grpc

    calls = []
    for number in range(connections):
        credentials, options = grpc_channel_arguments(directory, number)
        channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
        calls.append(channel.unary_unary("/Bench/echo"))
    latencies: list[float] = []

    def worker(call: Any, until: float, results: list[float]) -> None:
        while (start := time.perf_counter()) < until:
            call(payload)
            results.append(time.perf_counter() - start)

    def all_until(until: float, results: list[float]) -> None:
        threads = [
            threading.Thread(
                target=worker, args=(calls[number % len(calls)], until, results)
            )
            for number in range(in_flight)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_until(time.perf_counter() + _WARM_UP_S, [])
    start = time.perf_counter()
    all_until(start + seconds, latencies)
    return latencies, time.perf_counter() - start


def call_grpc_aio(
    directory: Path,
    port: int,
    payload: bytes,
    in_flight: int,
    connections: int,
    seconds: float,
) -> Latencies:
    """Call with grpcio on asyncio."""
    import grpc.aio

    async def run() -> Latencies:
        steps: list[Step] = []
        channels = []

        def step_of(call: Any) -> Step:
            return lambda: call(payload)

        for number in range(connections):
            credentials, options = grpc_channel_arguments(directory, number)
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{port}", credentials, options=options
            )
            channels.append(channel)
            steps.append(step_of(channel.unary_unary("/Bench/echo")))
        try:
            return await pump(steps, in_flight, seconds)
        finally:
            for channel in channels:
                await channel.close()

    return asyncio.run(run())


if __name__ == "__main__":
    main()
