"""Reading, checking and writing the parts of files, and worker threads."""

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from rpc25519_tools.errors import (
    ChecksumError,
    DeadlineError,
    FileChangedError,
    IncompleteTransferError,
    LocalFileError,
    NoSuchServiceError,
)
from rpc25519_tools.files.atomic import open_local_sink, open_local_target
from rpc25519_tools.files.parts import (
    ARG_PART_SUM,
    PartReader,
    PartWriter,
    TransferSummary,
    check_total,
    naming_service,
    parse_size,
    within,
)
from rpc25519_tools.files.sink import Sink
from rpc25519_tools.files.source import open_local_source
from rpc25519_tools.files.workers import AbandonableThread, in_worker, open_in_worker
from rpc25519_tools.rpc.streams import Part
from rpc25519_tools.wire.constants import PART_LEN
from rpc25519_tools.wire.digest import digest_text
from tests.helpers import until

NOTHING_SUM = "blake3.32B-rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI="


def part(number: int, payload: bytes, **args: str) -> Part:
    args = args or {ARG_PART_SUM: digest_text(payload)}
    return Part(number=number, payload=payload, args=args, last=False)


async def read_all(reader: PartReader) -> None:
    while (await reader.next())[0]:
        pass


# Reading.


@pytest.mark.parametrize("length", [0, 1, PART_LEN - 1, PART_LEN, PART_LEN + 1])
async def test_a_source_is_read_in_parts_with_their_sums(
    tmp_path: Path, length: int
) -> None:
    content = os.urandom(length)
    (tmp_path / "f").write_bytes(content)
    with open_local_source(str(tmp_path / "f")) as source:
        async with PartReader(source) as reader:
            assert reader.size_bytes == length
            parts = []
            while True:
                payload, part_sum = await reader.next()
                assert part_sum == digest_text(payload)
                parts.append(payload)
                if not payload:
                    break
        assert b"".join(parts) == content
        assert all(len(one) == PART_LEN for one in parts[:-2])
        assert reader.taken_bytes == length
        assert reader.total_sum == digest_text(content)


async def test_a_source_that_changes_is_noticed_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    # More than is read ahead, so that the end has not been seen yet.
    path.write_bytes(bytes(12 * PART_LEN))
    with open_local_source(str(path)) as source:
        async with PartReader(source) as reader:
            await reader.next()
            os.utime(path, ns=(0, 0))
            with pytest.raises(FileChangedError):
                await read_all(reader)


async def test_leaving_a_reader_waits_for_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(3 * PART_LEN))
    go, started = threading.Event(), threading.Event()
    with open_local_source(str(tmp_path / "f")) as source:
        read_into = source.read_into

        def slow_read(buffer: bytearray | memoryview) -> int:
            started.set()
            assert go.wait(10)
            return read_into(buffer)

        monkeypatch.setattr(source, "read_into", slow_read)
        left = asyncio.Event()

        async def read_and_leave() -> None:
            async with PartReader(source) as reader:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.next(), 0.01)
            left.set()

        leaving = asyncio.create_task(read_and_leave())
        await until(started.is_set)
        done, _ = await asyncio.wait([leaving], timeout=0.1)
        assert not done
        go.set()
        await leaving


# Writing.


async def write(
    target: Path, *batches: Sequence[Part], commit: bool = True
) -> PartWriter:
    def open_target() -> Sink:
        return open_local_target(str(target), clobber=True)

    async with PartWriter(open_target) as writer:
        for batch in batches:
            await writer.take(batch)
        if commit:
            await writer.commit()
    return writer


async def test_parts_with_right_sums_become_the_file(tmp_path: Path) -> None:
    batches = [
        [part(0, b"one ")],
        [part(1, b"two "), part(2, b"three")],
        [part(3, b"")],
    ]
    writer = await write(tmp_path / "f", *batches)
    assert (tmp_path / "f").read_bytes() == b"one two three"
    assert writer.received_bytes == 13
    assert writer.total_sum == digest_text(b"one two three")
    assert os.listdir(tmp_path) == ["f"]


async def test_a_first_part_may_come_without_a_sum(tmp_path: Path) -> None:
    first = Part(number=0, payload=b"x", args={}, last=False)
    await write(tmp_path / "f", [first])
    assert (tmp_path / "f").read_bytes() == b"x"


BAD_PARTS = {
    "wrong sum of the first": part(0, b"x", blake3=NOTHING_SUM),
    "wrong sum of a later one": part(1, b"x", blake3=NOTHING_SUM),
    "no sum of a later one": part(1, b"x", other="argument"),
    "sum in other words": part(1, b"x", blake3=blake3(b"x").hexdigest()),
    "empty sum": part(1, b"x", blake3=""),
}


@pytest.mark.parametrize("case", BAD_PARTS)
async def test_a_part_with_a_bad_sum_leaves_nothing(tmp_path: Path, case: str) -> None:
    bad = BAD_PARTS[case]
    with pytest.raises(ChecksumError, match=f"part {bad.number}"):
        await write(tmp_path / "f", [bad])
    assert os.listdir(tmp_path) == []


async def test_leaving_a_writer_without_a_commit_leaves_nothing(
    tmp_path: Path, no_leaked_fds: None
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    await write(tmp_path / "f", [part(0, b"new")], commit=False)
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_a_writer_into_a_pipe_can_be_left_behind(
    tmp_path: Path, no_leaked_fds: None
) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    def open_pipe() -> Sink:
        return open_local_sink(str(tmp_path / "pipe"), clobber=True)

    async with PartWriter(open_pipe) as writer:
        taking = asyncio.create_task(writer.take([part(0, bytes(PART_LEN))]))
        await until(lambda: select.select([reader], [], [], 0)[0])
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        # The thread writes on; with its reader gone it comes to an end.
        os.close(reader)


# Sums, sizes and words.


def test_a_total_is_compared_where_there_is_one() -> None:
    assert check_total({"sum": NOTHING_SUM}, "sum", NOTHING_SUM) is True
    assert check_total({}, "sum", NOTHING_SUM) is None


def test_a_wrong_total_is_told_without_its_raw_bytes() -> None:
    with pytest.raises(ChecksumError) as caught:
        check_total({"sum": "\x1b[31m" + "x" * 1000}, "sum", NOTHING_SUM)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1", 1), ("0012", 12), ("9" * 19, int("9" * 19))]
)
def test_an_announced_size_is_read(text: str, size: int) -> None:
    assert parse_size({"pathsize": text}, "pathsize") == size


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", "0x10", "1_000", "٣", " 1", "9" * 20, "9" * 5000]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(IncompleteTransferError, match="pathsize"):
        parse_size({"pathsize": text}, "pathsize")


def test_a_missing_size_is_refused() -> None:
    with pytest.raises(IncompleteTransferError):
        parse_size({}, "pathsize")


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(IncompleteTransferError):
        assert 0 <= parse_size({"pathsize": text}, "pathsize") < 10**19


def test_a_refused_service_is_named_for_people() -> None:
    with (
        pytest.raises(NoSuchServiceError) as caught,
        naming_service("uploads", "-readfile"),
    ):
        raise NoSuchServiceError("not offered: error! CallUploadBegin stream ...")
    assert str(caught.value) == (
        "the server does not offer uploads (srv has to be started with -readfile)"
    )


def test_a_summary_gives_the_sum_as_b3sum_prints_it() -> None:
    summary = TransferSummary(
        name="f",
        size_bytes=0,
        seconds=0.1,
        digest=digest_text(b"x"),
        verified_by_peer=True,
    )
    assert summary.blake3_hex == blake3(b"x").hexdigest()


# Limits on steps.


async def test_a_step_in_time_gives_its_result() -> None:
    async def step() -> str:
        return "done"

    assert await within(5, "nothing came", step()) == "done"


async def test_a_step_that_takes_too_long_says_what_did_not_come() -> None:
    with pytest.raises(DeadlineError, match=r"^nothing came for 0\.01 s; gave up$"):
        await within(0.01, "nothing came", asyncio.Event().wait())


async def test_a_timeout_inside_a_step_is_not_ours() -> None:
    async def step() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own") as caught:
        await within(5, "nothing came", step())
    assert not isinstance(caught.value, DeadlineError)


# Worker threads.


async def test_a_worker_gives_results_and_errors() -> None:
    def fail() -> None:
        raise LocalFileError("no")

    assert await in_worker(threading.current_thread) is not threading.main_thread()
    with pytest.raises(LocalFileError):
        await in_worker(fail)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancelled_caller_waits_for_its_worker(cancels: int) -> None:
    go, steps = threading.Event(), []

    def work() -> None:
        assert go.wait(10)
        steps.append("work")

    async def call() -> None:
        try:
            await in_worker(work)
        finally:
            steps.append("left")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["work", "left"]


async def test_the_error_of_a_cancelled_workers_work_goes_nowhere() -> None:
    go = threading.Event()

    def work() -> None:
        assert go.wait(10)
        raise LocalFileError("nobody hears this")

    task = asyncio.create_task(in_worker(work))
    await asyncio.sleep(0)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_was_opened_for_a_cancelled_caller_is_closed() -> None:
    closed: list[str] = []
    go = threading.Event()

    def opener() -> str:
        assert go.wait(10)
        return "opened"

    task = asyncio.create_task(open_in_worker(opener, closed.append))
    await asyncio.sleep(0)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == ["opened"]
    assert await open_in_worker(lambda: "kept", closed.append) == "kept"
    assert closed == ["opened"]


async def test_what_could_not_be_opened_is_not_closed() -> None:
    closed: list[object] = []

    def opener() -> str:
        raise LocalFileError("no such file")

    with pytest.raises(LocalFileError):
        await open_in_worker(opener, closed.append)
    assert closed == []


async def test_an_abandonable_thread_takes_steps_in_order() -> None:
    thread, order = AbandonableThread(), []

    def step(number: int) -> int:
        order.append(number)
        return number

    results = await asyncio.gather(*(thread.run(step, n) for n in range(5)))
    thread.close()
    assert results == order == list(range(5))


async def test_an_abandonable_thread_hands_on_errors() -> None:
    def fail() -> None:
        raise LocalFileError("no")

    thread = AbandonableThread()
    with pytest.raises(LocalFileError):
        await thread.run(fail)
    assert await thread.run(lambda: "still there") == "still there"
    thread.close()


def test_an_abandoned_step_does_not_mind_a_closed_loop() -> None:
    go, ended = threading.Event(), threading.Event()

    def block() -> None:
        go.wait(10)
        ended.set()

    async def leave() -> AbandonableThread:
        thread = AbandonableThread()
        step = asyncio.ensure_future(thread.run(block))
        await asyncio.sleep(0)
        step.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await step
        return thread

    thread = asyncio.run(leave())
    go.set()
    assert ended.wait(10)
    thread.close()


def test_closing_an_unused_abandonable_thread_starts_none() -> None:
    before = threading.active_count()
    AbandonableThread().close()
    assert threading.active_count() == before
