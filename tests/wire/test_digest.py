from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.wire.digest import RunningDigest, digest_text

# WIRE.md 5.8 and the upload vectors: the sum of no bytes, as the peer writes it.
EMPTY = "blake3.32B-rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI="


def test_empty_digest_is_the_peers_text() -> None:
    assert digest_text(b"") == EMPTY
    assert RunningDigest().text() == EMPTY


def test_digest_uses_the_url_alphabet_with_padding() -> None:
    texts = [digest_text(bytes([n])) for n in range(64)]
    assert {len(text) for text in texts} == {55}
    assert all(text.endswith("=") for text in texts)
    assert any("-" in text[11:] or "_" in text[11:] for text in texts)
    assert not any("+" in text or "/" in text for text in texts)


def test_every_kind_of_bytes_is_taken() -> None:
    expected = digest_text(b"abc")
    assert digest_text(bytearray(b"abc")) == expected
    assert digest_text(memoryview(b"xabcx")[1:4]) == expected


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_pieces_sum_to_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    running = RunningDigest()
    for number, piece in enumerate(pieces):
        running.update(memoryview(piece))
        assert running.text() == digest_text(b"".join(pieces[: number + 1]))
