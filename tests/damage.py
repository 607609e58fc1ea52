"""A journal that a memory card has damaged."""

from verdicts import a_verdict

from inspectd.journal import Journal
from inspectd.journal.database import PAGE_BYTES


def damage(journal: Journal) -> None:
    """Everything behind the first pages, as a failing memory card might."""
    for _ in range(100):
        journal.commit(a_verdict(detail="x" * 1000))
    journal._write_back()
    size = journal.path.stat().st_size
    with journal.path.open("r+b") as file:
        file.seek(3 * PAGE_BYTES)
        file.write(b"\xa5" * (size - 3 * PAGE_BYTES))
    journal._connection.execute("PRAGMA shrink_memory")  # or its cache would still be right
