"""Descriptors of transfers: bounded in all and for each connection."""

import threading

import pytest

from rpc25519_tools.errors import LocalFileError
from rpc25519_tools.files.descriptors import OpenFiles, open_files


def test_one_connection_gets_its_share_and_others_theirs() -> None:
    files = OpenFiles(5, 3)
    with files.reserve("a", 2), files.reserve("a", 1):
        with (
            pytest.raises(LocalFileError, match="this connection has too many files"),
            files.reserve("a", 1),
        ):
            pass
        with files.reserve("b", 2):
            assert files.count == 5
            with (
                pytest.raises(LocalFileError, match="the server has too many files"),
                files.reserve("c", 1),
            ):
                pass
        with files.reserve("c", 2):
            pass
    assert files.count == 0


def test_what_failed_inside_is_given_back() -> None:
    files = OpenFiles(2, 2)
    for _ in range(3):
        with pytest.raises(KeyError), files.reserve("a", 2):
            raise KeyError
    assert files.count == 0


def test_threads_count_together() -> None:
    files = OpenFiles(1000, 1000)

    def reserve() -> None:
        for _ in range(2000):
            with files.reserve("a", 1):
                pass

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.count == 0


@pytest.mark.parametrize(
    ("descriptors", "most", "per_connection"),
    [(0, 16, 4), (256, 51, 12), (1024, 204, 51), (1 << 40, 100_000, 25_000)],
)
def test_most_descriptors_are_left_to_connections(
    descriptors: int, most: int, per_connection: int
) -> None:
    files = OpenFiles.fitting(descriptors)
    with files.reserve("a", per_connection):
        with pytest.raises(LocalFileError), files.reserve("a", 1):
            pass
        with (
            files.reserve("b", per_connection),
            files.reserve("c", per_connection),
            files.reserve("d", per_connection),
            pytest.raises(LocalFileError, match="the server"),
            files.reserve("e", most - 4 * per_connection + 1),
        ):
            pass


def test_a_process_has_one_count() -> None:
    assert open_files() is open_files()
