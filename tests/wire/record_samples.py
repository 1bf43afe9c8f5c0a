"""Records that Go code has encoded too; the bytes are in tests/data/records."""

from dataclasses import dataclass

from rpc25519_tools.greenpack import (
    DurationNs,
    Float32,
    Int,
    Int8,
    Int16,
    Int32,
    Int64,
    TimeNs,
    Uint,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    array_record,
    zid,
)


@dataclass
class Inner:
    name: str = zid(0, "")
    n: Int64 = zid(1, 0)


@dataclass
class All:
    i: int = zid(0, 0)
    i8: Int8 = zid(1, 0)
    i16: Int16 = zid(2, 0)
    i32: Int32 = zid(3, 0)
    i64: Int64 = zid(4, 0)
    u: Uint = zid(5, 0)
    u8: Uint8 = zid(6, 0)
    u16: Uint16 = zid(7, 0)
    u32: Uint32 = zid(8, 0)
    u64: Uint64 = zid(9, 0)
    f32: Float32 = zid(10, 0.0)
    f64: float = zid(11, 0.0)
    b: bool = zid(12, False)
    s: str = zid(13, "")
    bin: bytes = zid(14, b"")
    t: TimeNs = zid(15, None)
    strs: list[str] = zid(16, default_factory=list)
    ints: list[Int64] = zid(17, default_factory=list)
    inners: list[Inner] = zid(18, default_factory=list)
    pointers: list[Inner | None] = zid(19, default_factory=list, name="PInners")
    m: dict[str, str] = zid(20, default_factory=dict)
    m_i: dict[str, Int] = zid(21, default_factory=dict)
    m_k: dict[int, int] = zid(22, default_factory=dict)
    nested: Inner = zid(23, default_factory=Inner, name="In")
    p: Inner | None = zid(24, None)
    p_s: str | None = zid(25, None)
    p_i: Int64 | None = zid(26, None)
    arr: tuple[int, int] = zid(27, (0, 0))
    m_in: dict[str, Inner] = zid(28, default_factory=dict)
    s_s: list[list[int]] = zid(29, default_factory=list)
    d: DurationNs = zid(30, 0)


@array_record
@dataclass
class Tup:
    a: int = zid(0, 0)
    s: str = zid(1, "")
    l: list[Int64] = zid(2, default_factory=list)  # noqa: E741  # its name in Go


FULL = All(
    i=-1,
    i8=-128,
    i16=300,
    i32=70000,
    i64=-(1 << 63),
    u=128,
    u8=255,
    u16=65535,
    u32=(1 << 32) - 1,
    u64=(1 << 64) - 1,
    f32=1.5,
    f64=3.141592653589793,
    b=True,
    s="hé\udcffllo",
    bin=b"\0\1\xff",
    t=1_700_000_000_123_456_789,
    strs=["a", "", "c"],
    ints=[0, 127, 128, -32, -33, 40000],
    inners=[Inner("x", 1), Inner()],
    pointers=[None, Inner("y", 2)],
    m={"k": "v"},
    m_i={"one": 1},
    m_k={-7: 200},
    nested=Inner("in", 9),
    p=Inner("p", 0),
    p_s="pointed",
    p_i=-5,
    arr=(3, -4),
    m_in={"m": Inner("z", 5)},
    s_s=[[1, 2], [], [300]],
    d=90_000_000_000,
)

LONG = All(
    s="s" * 300,
    bin=b"\7" * 70000,
    strs=[str(number) for number in range(20)],
    ints=[number * number * 1000003 for number in range(20)],
)

SAMPLES = {
    "full": FULL,
    "zero": All(),
    "long": LONG,
    "tuple": Tup(128, "t", [1, -1]),
    "tuple-zero": Tup(),
}
