"""A verdict as the service would make it, for tests that need one and do not care which."""

from datetime import UTC, datetime
from uuid import uuid4

from msgspec.structs import replace

from inspectd.payload import VerdictPayload


def a_verdict(**changes) -> VerdictPayload:
    """Uncommitted: its seq and journal id are not set yet."""
    verdict = VerdictPayload(
        station="line1-cell3",
        program="connector",
        id=uuid4().hex,
        journal_id="",
        seq=0,
        boot_id="boot",
        trigger="interval",
        triggered_at=datetime(2024, 5, 17, 6, 30, tzinfo=UTC),
        clock_synchronised=True,
        verdict="PASS",
        score=0.4,
        limit=12.5,
        margin=0.6,
        settings_hash="0123456789ab",
    )
    return replace(verdict, **changes)
