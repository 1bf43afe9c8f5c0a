"""What tests of transfers share: a place for files, and both ends."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from rpc25519_tools.files.atomic import open_local_target
from rpc25519_tools.files.download import DownloadService, download_file
from rpc25519_tools.files.echo import (
    ECHO_CALL_SERVICE,
    EchoFileService,
    echo_call,
)
from rpc25519_tools.files.jail import Root
from rpc25519_tools.files.kept_uploads import KEPT_UPLOADS_SERVICE
from rpc25519_tools.files.parts import (
    ARG_PART_SUM,
    DOWNLOAD_SERVICE,
    ECHO_FILE_SERVICE,
    UPLOAD_SERVICE,
    TransferSummary,
)
from rpc25519_tools.files.record import TransferRecord
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.upload import UploadService, upload_file
from rpc25519_tools.rpc.client import Client
from rpc25519_tools.rpc.registry import Registry
from rpc25519_tools.wire.digest import digest_text
from rpc25519_tools.wire.message import CallType, Header, Message
from tests.rpc.nets import Net


@dataclass
class Place:
    """Two directories, and what the services have noted."""

    served: Path
    local: Path
    records: list[TransferRecord] = field(default_factory=list)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.served) + os.listdir(self.local))

    @contextlib.contextmanager
    def services(self, *, clobber: bool = True) -> Iterator[Registry]:
        with Root(self.served) as root:
            registry = Registry()
            log = self.records.append
            uploads = UploadService(root, clobber=clobber, log=log)
            registry.add_upload(UPLOAD_SERVICE, uploads)
            registry.add_call(KEPT_UPLOADS_SERVICE, uploads.kept)
            registry.add_download(DOWNLOAD_SERVICE, DownloadService(root, log=log))
            registry.add_bistream(ECHO_FILE_SERVICE, EchoFileService(log=log))
            registry.add_call(ECHO_CALL_SERVICE, echo_call)
            yield registry


@contextlib.asynccontextmanager
async def connected(
    net: Net, place: Place, *, clobber: bool = True, **settings: object
) -> AsyncIterator[Client]:
    with place.services(clobber=clobber) as registry:
        async with net.pair(registry, **settings) as (_, client):
            yield client


async def upload(
    client: Client, place: Place, name: str = "f", **options: object
) -> TransferSummary:
    with open_local_source(str(place.local / name)) as source:
        return await upload_file(client, source, name, **options)  # type: ignore[arg-type]


def sink_at(path: Path, *, clobber: bool = True) -> Callable[[], Sink]:
    return lambda: open_local_target(str(path), clobber=clobber)


async def download(
    client: Client, place: Place, name: str = "f", **options: object
) -> TransferSummary:
    target = sink_at(place.local / name)
    return await download_file(client, name, target, **options)  # type: ignore[arg-type]


def summed(payload: bytes) -> dict[str, str]:
    return {ARG_PART_SUM: digest_text(payload)}


def download_part(
    number: int, payload: bytes, *, size: int | str | None = None, **args: str
) -> Message:
    if number == 0 and size is None:
        size = len(payload)
    if size is not None:
        args["pathsize"] = str(size)
    return Message(
        header=Header(
            call_type=CallType.DOWNLOAD_MORE if number else CallType.DOWNLOAD_BEGIN,
            stream_part=number,
            args=args,
        ),
        payload=payload,
    )


def reply(error: str = "", **args: str) -> Message:
    header = Header(call_type=CallType.RPC_REPLY, args=args)
    return Message(header=header, error=error)


def answering(opening: Message, answer: Message) -> Message:
    """Make an answer belong to a call."""
    header = replace(
        answer.header, call_id=opening.header.call_id, seqno=opening.header.seqno
    )
    return replace(answer, header=header)
