"""A journal seen by whoever does not hold it open."""

import os

import pytest
from verdicts import a_verdict

from inspectd.errors import JournalUnusable
from inspectd.journal import Journal
from inspectd.journal.lock import in_use
from inspectd.journal.outside import examine_journal


def test_a_journal_is_examined_while_it_is_in_use(tmp_path, monkeypatch):
    path = tmp_path / "journal.db"
    with Journal.open(path) as journal:
        for _ in range(3):
            journal.commit(a_verdict())
        journal.mark_sent([1])
        found = examine_journal(path, 5.0)
    assert (found.last_seq, found.unsent, found.searched) == (3, 2, True)
    assert examine_journal(path, 5.0).last_seq == 3  # and when nobody has it
    monkeypatch.setattr("inspectd.journal.damage._PROGRESS_STEPS", 1)
    assert not examine_journal(path, 0.0).searched  # in no time


def test_what_was_put_in_the_place_of_the_lock_is_neither_waited_for_nor_followed(tmp_path):
    """Root asks as well, for a backup; the folder is the service's."""
    path = tmp_path / "journal.db"
    lock = tmp_path / "journal.db.lock"
    os.mkfifo(lock)
    assert in_use(path) == ""
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JournalUnusable, match="symbolic links"):
        in_use(path)
    with pytest.raises(JournalUnusable, match="symbolic links"):
        Journal.open(path)
    assert not (tmp_path / "elsewhere").exists()
