"""The plant's bookkeeping: is every part accounted for, once, truly, and in order?

Pure functions on what was received, so that each can be shown to find what it is there to find.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from soak.consumer import Request

Verdicts = Sequence[dict]
"""Contents of topic `verdict`, in the order of arrival."""


def content(verdict: dict) -> dict:
    """All in which a repeated message must not differ."""
    return {key: value for key, value in verdict.items() if key != "historical"}


def first_arrivals(verdicts: Verdicts) -> list[dict]:
    """Without the repetitions: consumers dedupe by id."""
    by_id: dict[str, dict] = {}
    for verdict in verdicts:
        by_id.setdefault(verdict["id"], verdict)
    return list(by_id.values())


def changed(verdicts: Verdicts) -> Iterator[str]:
    """A repetition that differs in more than `historical`."""
    first = {verdict["id"]: verdict for verdict in first_arrivals(verdicts)}
    for verdict in verdicts:
        before = first[verdict["id"]]
        if content(verdict) != content(before):
            differing = [key for key in verdict if verdict[key] != before.get(key)]
            yield f"seq {verdict['seq']} came again with another {', '.join(differing)}"


def gaps(verdicts: Verdicts) -> Iterator[str]:
    """Numbers that are missing or stand for two inspections, and more than one journal."""
    journals = sorted({verdict["journal_id"] for verdict in verdicts})
    if len(journals) > 1:
        yield f"{len(journals)} journal ids: {', '.join(journals)}"
    seqs = sorted(verdict["seq"] for verdict in first_arrivals(verdicts))
    if len(set(seqs)) != len(seqs):
        yield f"the same seq on two inspections: {[a for a, b in pairwise(seqs) if a == b]}"
    missing = sorted(set(range(1, max(seqs, default=0) + 1)) - set(seqs))
    if missing:
        yield f"{len(missing)} numbers are missing up to {seqs[-1]}: {missing[:20]}"


def disorder(verdicts: Verdicts) -> Iterator[str]:
    """Live verdicts of a boot, or those of the backlog, that overtook one another."""
    last: dict[str, int] = {}
    for verdict in first_arrivals(verdicts):
        lane = "the backlog" if verdict["historical"] else f"live of boot {verdict['boot_id'][:6]}"
        if verdict["seq"] < last.get(lane, 0):
            yield f"{lane}: seq {verdict['seq']} came after {last[lane]}"
        last[lane] = max(verdict["seq"], last.get(lane, 0))


def unanswered(requests: dict[str, Request], verdicts: Verdicts) -> Iterator[str]:
    """Parts without an answer, with two different ones, or with one that the journal lacks."""
    known = {verdict["id"]: verdict for verdict in verdicts}
    for transaction, request in requests.items():
        ids = {answer["id"] for answer in request.answers}
        if not ids:
            yield f"part {request.part_id} was never answered ({len(request.sent_at)} requests)"
        if len(ids) > 1:
            yield f"part {request.part_id} was answered with {len(ids)} inspections"
        for answer in request.answers:
            stated = known.get(answer["id"])
            if stated is None:
                yield f"seq {answer['seq']} was an answer, but never a verdict"
            elif content(stated) != content(answer):
                yield f"seq {answer['seq']} was answered otherwise than published"
            if (answer["part_id"], answer["transaction"]) != (request.part_id, transaction):
                yield f"part {request.part_id} was answered with the verdict of another"


def judged_twice(verdicts: Verdicts) -> Iterator[str]:
    """A transaction that was looked at again when it was repeated."""
    by_transaction: dict[str, dict] = {}
    for verdict in first_arrivals(verdicts):
        transaction = verdict["transaction"]
        before = by_transaction.setdefault(transaction, verdict)
        if transaction is not None and before is not verdict:
            yield f"{transaction} has seq {before['seq']} and seq {verdict['seq']}"


def old_pictures(
    requests: dict[str, Request], verdicts: Verdicts, within: timedelta
) -> Iterator[str]:
    """A part that was judged by a picture taken long after it was asked for: of another part."""
    for verdict in first_arrivals(verdicts):
        request = requests.get(verdict["transaction"])
        if verdict["verdict"] == "NOT_JUDGED" or request is None:
            continue
        taken_at = datetime.fromisoformat(verdict["captured_at"])
        waits = [taken_at - sent_at for sent_at in request.sent_at if sent_at <= taken_at]
        if not waits or min(waits) > within:
            waited = f"{min(waits).total_seconds():.1f} s" if waits else "for ever"
            yield (
                f"seq {verdict['seq']} is {verdict['verdict']} by a picture taken {waited} "
                f"after part {request.part_id} was asked for"
            )
