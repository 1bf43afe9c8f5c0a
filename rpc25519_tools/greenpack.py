"""Records for the wire: dataclasses that Go reads as structs, and the other way.

    @dataclass
    class Job:
        name: str = zid(0, "")
        size_bytes: Int64 = zid(1, 0)

is, on the wire, Go's

    type Job struct {
        Name      string `zid:"0"`
        SizeBytes int64  `zid:"1"`
    }
"""

from rpc25519_tools.wire.record_types import (
    Byte,
    DurationNs,
    FixedLen,
    Float32,
    Float64,
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
from rpc25519_tools.wire.records import check_type, decode, decode_prefix, encode

__all__ = [
    "Byte",
    "DurationNs",
    "FixedLen",
    "Float32",
    "Float64",
    "Int",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "TimeNs",
    "Uint",
    "Uint8",
    "Uint16",
    "Uint32",
    "Uint64",
    "array_record",
    "check_type",
    "decode",
    "decode_prefix",
    "encode",
    "zid",
]
