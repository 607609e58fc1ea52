"""Opening a plain file and nothing else."""

import os
import socket
from pathlib import Path

import pytest

from inspectd.tarball import open_plain


def test_a_plain_file_by_its_path_and_by_its_name_in_a_folder(tmp_path: Path):
    (tmp_path / "a").write_text("text")
    with open_plain(tmp_path / "a") as file:
        assert file.read() == b"text"
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with open_plain("a", folder) as file:
            assert file.read() == b"text"
            assert not os.get_inheritable(file.fileno())
    finally:
        os.close(folder)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path):
    (tmp_path / "a").write_text("text")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it: whoever just opened it would hang
    with pytest.raises(OSError, match="it is a symbolic link"):
        open_plain(tmp_path / "link")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        open_plain(tmp_path / "folder")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="it is a pipe or a device"):
            open_plain(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            open_plain(tmp_path / "socket")
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none")


def test_no_descriptor_is_left_open(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(OSError, match="folder"):
            open_plain(tmp_path / "folder")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
