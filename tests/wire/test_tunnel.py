"""Keys, nonces and envelopes: recorded bytes both ways, and every kind of attack."""

import gc
import tracemalloc

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    DecryptionError,
    FrameTooLargeError,
    HandshakeError,
    RemoteProtocolError,
)
from rpc25519_tools.wire.buffers import BufferPool
from rpc25519_tools.wire.constants import MAGIC
from rpc25519_tools.wire.tunnel import (
    LENGTH_LEN,
    MAX_SEALED_LEN,
    NONCE_LEN,
    OVERHEAD_LEN,
    NonceCheck,
    Opener,
    Sealer,
    Side,
    commit_tag,
    confirmation,
    derive_psk,
    first_nonce,
    next_nonce,
    session_key,
    shared_secret,
    uncommit_tag,
)
from tests.wire.psk_vectors import EXCHANGES, exchange, vectors, x25519

KEY = bytes(range(32))
CLIENT_START = bytes(range(11)) + b"\x11"
SERVER_START = bytes(range(11)) + b"\x7f"
KDF = vectors("kdf")
SIDES: tuple[Side, Side] = ("client", "server")


def plain(body: bytes) -> bytes:
    return MAGIC + b"\0" + body


def sealed(
    *bodies: bytes, start: bytes = CLIENT_START, key: bytes = KEY
) -> list[bytes]:
    sealer = Sealer(key, start)
    return [b"".join(map(bytes, sealer.seal([plain(body)]))) for body in bodies]


def opener(writer: Side = "client", scratch_len: int = 64 * 1024) -> Opener:
    return Opener(KEY, writer, bytearray(scratch_len))


def take(receiver: Opener, data: bytes) -> list[bytes]:
    return list(receiver.receive_data(data))


def feed(receiver: Opener, data: bytes) -> list[bytes]:
    """Feed by way of get_buffer, as a transport does."""
    found: list[bytes] = []
    position = 0
    while position < len(data):
        memory = receiver.get_buffer()
        count = min(len(memory), len(data) - position)
        memory[:count] = data[position : position + count]
        found += receiver.buffer_updated(count)
        position += count
    return found


@pytest.mark.parametrize("case", KDF["psk_file_to_psk"])
def test_key_files_as_recorded(case: dict[str, str]) -> None:
    derived = derive_psk(bytes.fromhex(case["file_hex"]))
    assert derived.hex() == case["derived_psk_hex"]


@pytest.mark.parametrize("case", KDF["session_key"])
def test_session_keys_as_recorded(case: dict[str, str]) -> None:
    shared = bytes.fromhex(case["x25519_shared_hex"])
    key = session_key(shared, bytes.fromhex(case["derived_psk_hex"]))
    assert key.hex() == case["session_key_hex"]


@pytest.mark.parametrize("case", KDF["nonce_increment"])
def test_nonces_count_as_recorded(case: dict[str, str]) -> None:
    assert next_nonce(bytes.fromhex(case["before_hex"])).hex() == case["after_hex"]


@pytest.mark.parametrize("case", vectors("pact")["cases"])
def test_tags_as_recorded_both_ways(case: dict[str, str]) -> None:
    key, associated, nonce, before, after = (
        bytes.fromhex(case[name])
        for name in (
            "key_hex",
            "associated_data_hex",
            "nonce_hex",
            "tag_before_hex",
            "tag_on_wire_hex",
        )
    )
    assert commit_tag(key, associated, nonce, before) == after
    assert uncommit_tag(key, associated, nonce, after) == before


@pytest.mark.parametrize("codec", EXCHANGES)
def test_recorded_exchanges_both_ways(codec: str) -> None:
    recorded = exchange(codec)
    psk = derive_psk(bytes.fromhex(recorded["psk_file_hex"]))
    assert psk.hex() == recorded["derived_psk_hex"]
    for ours, other in (("client", "server"), ("server", "client")):
        private = x25519(recorded[f"{ours}_ephemeral_private_hex"])
        public_hex = recorded[f"{ours}_ephemeral_public_hex"]
        assert private.public_key().public_bytes_raw().hex() == public_hex
        public = bytes.fromhex(recorded[f"{other}_ephemeral_public_hex"])
        shared = shared_secret(private, public)
        assert shared.hex() == recorded["x25519_shared_hex"]
    key = session_key(bytes.fromhex(recorded["x25519_shared_hex"]), psk)
    assert key.hex() == recorded["session_key_hex"]
    for envelope in recorded["envelopes"]:
        writer: Side = envelope["direction"].partition("_")[0]
        wire = bytes.fromhex(envelope["wire_hex"])
        content = bytes.fromhex(envelope["plaintext_hex"])
        nonce = bytes.fromhex(envelope["nonce_hex"])
        assert take(Opener(key, writer, bytearray(100)), wire) == [content]
        assert b"".join(map(bytes, Sealer(key, nonce).seal([content]))) == wire
        assert first_nonce(writer, nonce) == nonce


@pytest.mark.parametrize(
    "low_order", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
)
def test_keys_of_small_order_are_refused(low_order: bytes) -> None:
    with pytest.raises(HandshakeError, match="not usable"):
        shared_secret(X25519PrivateKey.from_private_bytes(KEY), low_order)


def test_a_confirmation_depends_on_everything() -> None:
    inputs = [b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32]
    made = {confirmation(*inputs)}
    for index in range(4):
        changed = [*inputs]
        changed[index] = b"x" * 32
        made.add(confirmation(*changed))
    made.add(session_key(inputs[0], inputs[1]))
    assert len(made) == 6


@given(st.binary(min_size=12, max_size=12))
def test_first_nonces_tell_the_sides_apart(random_bytes: bytes) -> None:
    assert first_nonce("client", random_bytes)[-1] < 0x40
    assert first_nonce("server", random_bytes)[-1] == 0x7F
    for side in SIDES:
        assert first_nonce(side, random_bytes)[:11] == random_bytes[:11]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.binary(max_size=300) | st.just(bytes(70_000)), max_size=5),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=5),
)
def test_however_it_is_cut_all_of_it_opens(
    bodies: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(sealed(*bodies))
    receiver = opener()
    found: list[bytes] = []
    position, turn = 0, 0
    while position < len(stream):
        step = cuts[turn % len(cuts)]
        found += feed(receiver, stream[position : position + step])
        position += step
        turn += 1
    assert found == [plain(body) for body in bodies]
    assert receiver.at_boundary
    assert receiver.opened == len(bodies)


def test_one_byte_at_a_time() -> None:
    receiver = opener()
    found = []
    for number in b"".join(sealed(b"one", b"two")):
        found += take(receiver, bytes([number]))
    assert found == [plain(b"one"), plain(b"two")]


def test_pieces_seal_as_the_whole() -> None:
    whole = Sealer(KEY, CLIENT_START).seal([plain(b"x" * 50_000)])
    pieces = Sealer(KEY, CLIENT_START).seal([plain(b"x" * 20_000), b"x" * 30_000])
    assert b"".join(map(bytes, whole)) == b"".join(map(bytes, pieces))
    assert len(pieces) > 1  # what is long is not copied once more


@given(st.data())
def test_every_changed_bit_ends_it_without_data(data: st.DataObject) -> None:
    wire = bytearray(sealed(b"a message")[0])
    bit = data.draw(st.integers(0, 8 * len(wire) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    receiver = opener()
    try:
        found = take(receiver, bytes(wire))
    except (DecryptionError, RemoteProtocolError):
        with pytest.raises(RemoteProtocolError, match="given up"):
            take(receiver, sealed(b"a message")[0])
    else:
        assert bit // 8 < 8, "only a longer length can make it wait"
        assert not receiver.at_boundary
        assert found == []


@pytest.mark.parametrize(
    "order",
    [
        [0, 0],
        [0, 1, 0],
        [0, 1, 1],
        [1, 0],
        [0, 2, 1],
        [0, 2],
        [0, 1, 2, 1],
    ],
)
def test_what_is_repeated_swapped_or_left_out_is_refused(order: list[int]) -> None:
    for writer, start in zip(SIDES, (CLIENT_START, SERVER_START), strict=True):
        envelopes = sealed(b"zero", b"one", b"two", start=start)
        receiver = opener(writer)
        opened: list[bytes] = []
        error: DecryptionError | None = None
        for number in order:
            try:
                opened += take(receiver, envelopes[number])
            except DecryptionError as exc:
                error = exc
                break
        assert error is not None
        right = [plain(b"zero"), plain(b"one"), plain(b"two")]
        assert opened == right[order[0] :][: len(opened)]  # and nothing after a gap


def test_two_writers_of_a_server_may_interleave() -> None:
    answers = sealed(b"a1", b"a2", b"a3", start=SERVER_START)
    pushes = sealed(b"p1", b"p2", start=b"\x55" * 11 + b"\x7f")
    receiver = opener("server")
    order = [answers[0], pushes[0], pushes[1], answers[1], answers[2]]
    found = [one for part in order for one in take(receiver, part)]
    assert found == [plain(body) for body in (b"a1", b"p1", b"p2", b"a2", b"a3")]
    third = sealed(b"x", start=b"\x77" * 11 + b"\x7f")[0]
    with pytest.raises(DecryptionError):
        take(receiver, third)


def test_a_client_has_one_writer() -> None:
    receiver = opener("client")
    take(receiver, sealed(b"one")[0])
    with pytest.raises(DecryptionError):
        take(receiver, sealed(b"two", start=b"\x55" * 11 + b"\x11")[0])


@pytest.mark.parametrize("writer", ["client", "server"])
def test_our_own_messages_sent_back_are_refused(writer: Side) -> None:
    own = SERVER_START if writer == "client" else CLIENT_START
    with pytest.raises(DecryptionError):
        take(opener(writer), sealed(b"mirror", start=own)[0])


def test_a_counter_cannot_leave_its_side() -> None:
    check = NonceCheck("client")
    last = b"\xff" * 11 + b"\x3f"
    assert check.accept(last)
    assert not check.accept(next_nonce(last))


def test_nonces_in_order_are_accepted_for_long() -> None:
    check = NonceCheck("server")
    nonce = SERVER_START
    for _ in range(1000):
        assert check.accept(nonce)
        nonce = next_nonce(nonce)


def test_a_wrong_key_opens_nothing() -> None:
    with pytest.raises(DecryptionError, match="pre-shared keys differ"):
        take(opener(), sealed(b"x", key=bytes(32))[0])


@pytest.mark.parametrize("length", [MAX_SEALED_LEN + 1, 1 << 40, (1 << 64) - 1])
def test_long_claims_are_refused(length: int) -> None:
    with pytest.raises(FrameTooLargeError) as caught:
        take(opener(), length.to_bytes(8, "big"))
    assert caught.value.got == length


@pytest.mark.parametrize("length", [0, 1, 15, 16, 27, 28, OVERHEAD_LEN - 1])
def test_lengths_below_the_least_are_refused(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="shorter"):
        take(opener(), length.to_bytes(8, "big"))


def test_a_lower_limit_is_kept() -> None:
    wire = sealed(b"x" * 1000)[0]
    exact = len(wire) - LENGTH_LEN
    enough = Opener(KEY, "client", bytearray(100), max_sealed_len=exact)
    assert take(enough, wire) == [plain(b"x" * 1000)]
    receiver = Opener(KEY, "client", bytearray(100), max_sealed_len=exact - 1)
    with pytest.raises(FrameTooLargeError, match=f"the limit is {exact - 1}"):
        take(receiver, wire[:LENGTH_LEN])


def test_memory_follows_what_arrives() -> None:
    receiver = opener()
    take(receiver, MAX_SEALED_LEN.to_bytes(8, "big"))
    assert receiver.held_len < 2 << 20  # one pooled buffer, not 64 MiB
    receiver = Opener(KEY, "client", bytearray(100), BufferPool(kept=0))
    take(receiver, MAX_SEALED_LEN.to_bytes(8, "big"))
    assert receiver.held_len <= 16 * 1024
    for sent_len in (20_000, 200_000, 2_000_000):
        take(receiver, bytes(sent_len))
        assert receiver.held_len <= 4 * sent_len


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 600_000),
    st.lists(st.integers(1, 100_000), min_size=1, max_size=5),
    st.booleans(),
)
def test_it_tells_what_it_is_about_to_hold(
    body_len: int, cuts: list[int], direct: bool
) -> None:
    told: list[int] = []

    def note(held_len: int) -> None:
        # What is there when it is asked for more was told before.
        assert receiver.held_len in (0, told[-1] if told else 0)
        told.append(held_len)

    pool = BufferPool(kept=0)
    scratch = bytearray(64 * 1024)
    receiver = Opener(KEY, "client", scratch, pool, on_held=note)
    wire = sealed(bytes(body_len))[0]
    position, turn, found = 0, 0, []
    while position < len(wire):
        data = wire[position : position + cuts[turn % len(cuts)]]
        found += feed(receiver, data) if direct else take(receiver, data)
        assert receiver.held_len == (told[-1] if told else 0)
        position += len(data)
        turn += 1
    assert found == [plain(bytes(body_len))]
    assert told[-1] == 0
    assert told[-2] == len(wire) - LENGTH_LEN  # in the end exactly what is needed


def test_what_may_not_be_held_is_not_allocated() -> None:
    def refuse(held_len: int) -> None:
        if held_len > 100_000:
            raise MemoryError

    receiver = Opener(KEY, "client", bytearray(100), BufferPool(kept=0), on_held=refuse)
    take(receiver, MAX_SEALED_LEN.to_bytes(8, "big") + bytes(60_000))
    held_len = receiver.held_len
    with pytest.raises(MemoryError):
        take(receiver, bytes(60_000))
    assert receiver.held_len == held_len
    receiver.give_up()
    assert receiver.held_len == 0
    with pytest.raises(RemoteProtocolError, match="given up"):
        take(receiver, b"x")


def test_an_error_keeps_nothing_of_the_envelope() -> None:
    """Errors are kept as reasons for the end, with the variables of all they passed."""
    changed = bytearray(sealed(bytes(8 << 20))[0])
    changed[-1] ^= 1
    wire = bytes(changed)
    receiver = opener()
    gc.collect()
    gc.disable()  # it would tidy up too late
    tracemalloc.start()
    try:
        with pytest.raises(DecryptionError) as caught:
            take(receiver, wire)
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert most > 8 << 20
    assert left < 2 << 20


def test_an_authentic_message_without_magic_is_refused() -> None:
    envelope = Sealer(KEY, CLIENT_START).seal([b"not magic"])
    with pytest.raises(RemoteProtocolError, match="magic"):
        take(opener(), b"".join(map(bytes, envelope)))


def test_a_long_message_is_received_in_place() -> None:
    body = bytes(range(256)) * 20_000  # longer than a pooled buffer: it has to grow
    receiver = opener()
    assert feed(receiver, sealed(body)[0]) == [plain(body)]
    assert NONCE_LEN + len(plain(body)) + 16 > 2 << 20
