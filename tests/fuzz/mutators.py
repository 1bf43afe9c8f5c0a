"""Changes to inputs: of any bytes, and of those of a known grammar.

A mutator gets a source of randomness, an input, and the pool of inputs to take pieces
from, and returns the changed input. Each is a pure function of these three.
"""

import random
from collections.abc import Callable, Sequence
from typing import Literal

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

#: Numbers at which lengths and counters tend to go wrong.
ODD_NUMBERS = (
    *(0, 1, 2, 15, 16, 31, 32, 127, 128, 255, 256, 1023, 1024, 4095, 65_535, 65_536),
    *((1 << 20) - 1, 1 << 24, (1 << 26) - 80, (1 << 26) - 79, 1 << 26, (1 << 31) - 1),
    *(1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)


def a_place(rng: random.Random, data: bytes) -> int:
    """Choose an offset, more often near the front, where headers are."""
    if len(data) > 64 and rng.random() < 0.5:
        return rng.randrange(64)
    return rng.randrange(len(data) + 1)


def put(data: bytes, start: int, new: bytes, end: int | None = None) -> bytes:
    """Return ``data`` with what lies from start to end replaced."""
    return data[:start] + new + data[start + len(new) if end is None else end :]


def flip_bits(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        changed[min(a_place(rng, data), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_byte(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    value = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return put(data, a_place(rng, data), bytes((value,)))


def set_number(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Put an odd number, or one near the old one, where a length might be."""
    width = rng.choice((1, 2, 3, 4, 8))
    order: Literal["big", "little"] = "big" if rng.random() < 0.5 else "little"
    at = a_place(rng, data)
    if rng.random() < 0.5:
        value = rng.choice(ODD_NUMBERS)
    else:
        value = int.from_bytes(data[at : at + width], order) + rng.randrange(-8, 9)
    number = (value & (1 << 8 * width) - 1).to_bytes(width, order)
    return put(data, at, number)


def cut(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def cut_front(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data[rng.randrange(min(len(data), 64) + 1) :]


def extend(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data + rng.randbytes(rng.choice((1, 4, 16, 200)))


def remove(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start = a_place(rng, data)
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 100)) :]


def repeat(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start = a_place(rng, data)
    piece = data[start : start + rng.choice((1, 2, 8, 40, 300))]
    return data[:start] + piece * rng.choice((2, 2, 3, 17, 40)) + data[start:]


def insert(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start = a_place(rng, data)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 8, 33))) + data[start:]


def splice(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    other = rng.choice(pool)
    return data[: a_place(rng, data)] + other[a_place(rng, other) :]


BYTES: tuple[Mutator, ...] = (
    *(flip_bits, set_byte, set_number, set_number, cut, cut_front),
    *(extend, remove, repeat, insert, splice),
)


# Lines of text: key files, PEM, lists of keys, rules.

ODD_WORDS = (
    *("", " ", ":", "-", "0", "-1", "1", "255", "256", "4294967296", "9" * 30, "1e9"),
    *("0x10", "true", "*", "..", "/", "\t", "\x1b[31m", "\u0660", "\r", "A" * 5000),
    *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "\0", "%s", "{}"),
)


def change_lines(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Drop, double, swap or mix up lines, or change a word of one."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, rng.choice(lines))
        case 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines.insert(at, rng.choice(rng.choice(pool).split(b"\n")))
        case 4:
            lines[at] = (
                lines[at].swapcase() if rng.random() < 0.5 else lines[at] + b"\r"
            )
        case _:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS).encode()
            lines[at] = b" ".join(words)
    return b"\n".join(lines)


def change_digits(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Replace a number in a text by an odd one."""
    at = a_place(rng, data)
    while at < len(data) and not data[at : at + 1].isdigit():
        at += 1
    end = at
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    number = rng.choice((*ODD_NUMBERS, 10**12, 10**40))
    return put(data, at, str(number).encode(), end)


TEXT: tuple[Mutator, ...] = (change_lines, change_lines, change_digits, *BYTES)


def mutate(
    rng: random.Random,
    data: bytes,
    pool: Sequence[bytes],
    mutators: Sequence[Mutator],
    max_len: int,
) -> bytes:
    """Change an input once or some times."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        data = rng.choice(mutators)(rng, data, pool)[:max_len]
    return data
