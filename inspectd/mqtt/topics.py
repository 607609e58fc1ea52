"""The names of the topics under ``inspectd/STATION``."""

from __future__ import annotations

from dataclasses import dataclass

ONLINE = b"online"
OFFLINE = b"offline"


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one station."""

    station: str

    @property
    def base(self) -> str:
        return f"inspectd/{self.station}"

    @property
    def availability(self) -> str:
        return f"{self.base}/availability"

    @property
    def state(self) -> str:
        return f"{self.base}/state"

    @property
    def verdict(self) -> str:
        return f"{self.base}/verdict"

    @property
    def result(self) -> str:
        return f"{self.base}/result"

    @property
    def heatmap(self) -> str:
        return f"{self.base}/heatmap"

    @property
    def heatmap_id(self) -> str:
        return f"{self.base}/heatmap/id"

    @property
    def snapshot(self) -> str:
        """The picture that `request/snapshot` asked for."""
        return f"{self.base}/snapshot"

    @property
    def map(self) -> str:
        return f"{self.base}/map"

    @property
    def health(self) -> str:
        return f"{self.base}/health"

    @property
    def doctor(self) -> str:
        """For trying out whether the broker takes messages at all; nobody listens."""
        return f"{self.base}/doctor"

    @property
    def statistics(self) -> str:
        return f"{self.base}/statistics"

    @property
    def heartbeat(self) -> str:
        return f"{self.base}/heartbeat"

    def request(self, name: str) -> str:
        return f"{self.base}/request/{name}"

    def response(self, name: str) -> str:
        return f"{self.base}/response/{name}"

    def is_reserved(self, topic: str) -> bool:
        """Whether it is the station's and no place for answers: one on `verdict` would be taken
        for a verdict.
        """
        return topic.startswith(f"{self.base}/") and not topic.startswith(f"{self.base}/response/")
