"""Files that a power cut leaves whole."""

import resource
import signal

import pytest

from inspectd.durable import TEMPORARY, replace_file, sync_folder


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"a longer one before")
    replace_file(path, b"new")
    sync_folder(tmp_path)
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    """As on a full disk: the file system takes the first bytes only."""
    path = tmp_path / "file.json"
    path.write_bytes(b"before")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            replace_file(path, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_what_an_interrupted_writing_left_does_not_hinder(tmp_path):
    (tmp_path / f"{TEMPORARY}file.json").write_bytes(b"half of it, and longer than the next")
    replace_file(tmp_path / "file.json", b"new")
    assert (tmp_path / "file.json").read_bytes() == b"new"


def test_what_cannot_be_written_is_told_by_the_first_failure(tmp_path):
    """Not by that of clearing up."""
    (tmp_path / f"{TEMPORARY}file.json").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "file.json", b"new")


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "gone")
