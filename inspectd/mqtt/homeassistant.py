"""Announces the station to Home Assistant: one device, by Home Assistant's MQTT device discovery.

The message and its keys are described at https://www.home-assistant.io/integrations/mqtt/ and on
the pages of the platforms it names there. Nothing else is published for Home Assistant: every
entity reads the topics that everyone reads.

Three rules keep old values from looking live:

- What concerns the parts is unavailable whenever `availability` is offline.
- What must be seen just then (counters, warnings, the machine) is not, but expires.
- A verdict marked ``historical`` changes nothing. The verdict itself is read from `result`, which
  the backlog never touches. Home Assistant ignores the empty text for numbers and events; a text
  has to be told its own state once more.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Any

import msgspec

from inspectd.mqtt.topics import OFFLINE, ONLINE, Topics
from inspectd.settings import HomeAssistantSettings, Station

_logger = logging.getLogger(__name__)

Message = tuple[str, bytes]
"""Topic and payload, to be retained."""
Entity = dict[str, Any]

LEAST_EXPIRY_S = 60
"""Several times the period of `health`: a late report is no outage."""
LONGEST_DELAY_S = 5.0
"""After a birth message; random, so that not all devices of a plant answer in the same instant."""
BIRTH = b"online"

_LONGEST_STATE = 255
"""In characters; Home Assistant refuses a longer text."""
_VERDICTS = ["PASS", "FAIL", "NOT_JUDGED"]
_ALWAYS: Entity = {"availability": []}
"""Instead of the device's availability, which every other entity shares."""
_DIAGNOSTIC: Entity = {"entity_category": "diagnostic"}


def birth_topic(settings: HomeAssistantSettings) -> str:
    """Where Home Assistant says ``online`` once it has started."""
    return f"{settings.prefix}/status"


def discovery(
    station: Station, topics: Topics, programs: Iterable[str], version: str
) -> list[Message]:
    """What announces a station; nothing without ``mqtt.homeassistant``.

    The ids depend on nothing but the station's name, so that Home Assistant knows it again with
    another program, version, or prefix.

    Args:
        programs: the names of those that `request/program` may ask for.
        version: of inspectd.
    """
    settings = station.mqtt.homeassistant
    if settings is None:
        return []
    device_id = f"inspectd_{topics.station}"
    entities = {
        **_part(topics),
        **_station(station, topics),
        **_counters(station, topics),
        **_health(topics),
        **_requests(station, topics, programs),
    }
    message = {
        "device": {
            "identifiers": [device_id],
            "name": topics.station,
            "manufacturer": "inspectd",
            "model": "Vision sensor",
            "sw_version": version,
        },
        "origin": {"name": "inspectd", "sw_version": version},
        "availability": [
            {
                "topic": topics.availability,
                "payload_available": ONLINE.decode(),
                "payload_not_available": OFFLINE.decode(),
            }
        ],
        "qos": 1,
        "components": {
            key: entity if _is_removed(entity) else entity | {"unique_id": f"{device_id}_{key}"}
            for key, entity in entities.items()
        },
    }
    return [(f"{settings.prefix}/device/{device_id}/config", msgspec.json.encode(message))]


class Announcement:
    """Keeps Home Assistant told, and takes back what it was told before."""

    def __init__(
        self,
        publish_retained: Callable[[str, bytes], None],
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        self._publish_retained = publish_retained
        self._longest_delay_s = longest_delay_s
        # Held while publishing: what was taken back must not be overtaken by a repetition.
        self._publishing = threading.Lock()
        self._messages: dict[str, bytes] = {}
        # Never held while publishing, so that the network thread need not wait for it.
        self._planning = threading.Lock()
        self._repetition: threading.Timer | None = None
        self._stopped = False

    def announce(self, messages: Sequence[Message]) -> None:
        """Publish these, and empty every earlier topic that is not among them."""
        with self._publishing:
            gone = self._messages.keys() - dict(messages).keys()
            self._messages = dict(messages)
            for topic in gone:
                self._publish_retained(topic, b"")
            self._publish()

    def on_status(self, payload: bytes) -> None:
        """Home Assistant has come or gone; for the network thread, does not wait."""
        if payload != BIRTH:
            return
        delay_s = random.uniform(0.0, self._longest_delay_s)  # noqa: S311 (no secret)
        with self._planning:
            if self._stopped:
                return
            if self._repetition is not None:
                self._repetition.cancel()
            self._repetition = threading.Timer(delay_s, self._repeat)
            self._repetition.daemon = True
            self._repetition.start()

    def stop(self) -> None:
        """Repeat nothing any more; what is announced stays, and goes offline by `availability`."""
        with self._planning:
            self._stopped = True
            if self._repetition is not None:
                self._repetition.cancel()

    def _repeat(self) -> None:
        _logger.debug("Home Assistant has started: announcing the station again")
        with self._publishing:
            self._publish()

    def _publish(self) -> None:
        for topic, payload in self._messages.items():
            self._publish_retained(topic, payload)


# ---- the entities, by the ends of their ids ----------------------------------------------------


def _part(topics: Topics) -> dict[str, Entity]:
    """What was found on the last part."""
    verdict = "value.split(' ')[0]"
    return {
        "verdict": {
            "platform": "sensor",
            "name": "Verdict",
            "icon": "mdi:eye-check-outline",
            "state_topic": topics.result,
            "value_template": f"{{{{ {verdict} }}}}",
            "device_class": "enum",
            "options": _VERDICTS,
        },
        "not_passed": {
            "platform": "binary_sensor",
            "name": "Not passed",
            "state_topic": topics.result,
            "value_template": f"{{{{ 'OFF' if {verdict} == 'PASS' else 'ON' }}}}",
            "device_class": "problem",
        },
        "score": {
            "platform": "sensor",
            "name": "Score",
            "icon": "mdi:gauge",
            "state_topic": topics.verdict,
            "value_template": "{{ '' if value_json.historical else value_json.score }}",
            "state_class": "measurement",
            "suggested_display_precision": 2,
        },
        "reason": {
            "platform": "sensor",
            "name": "Reason",
            "icon": "mdi:comment-question-outline",
            "state_topic": topics.verdict,
            "value_template": _live_text("value_json.reason or 'none'"),
        },
        "part_id": {
            "platform": "sensor",
            "name": "Part id",
            "icon": "mdi:barcode",
            "state_topic": topics.verdict,
            "value_template": _live_text("value_json.part_id"),
        },
        "inspection": _inspection(topics),
        "heatmap": {
            "platform": "image",
            "name": "Heatmap",
            "image_topic": topics.heatmap,
            "content_type": "image/png",
        },
    }


def _inspection(topics: Topics) -> Entity:
    """For automations: two FAILs in a row change no sensor, but are two events."""
    fields = ["seq", "id", "part_id", "lot", "program", "score", "reason", "detail"]
    event = ", ".join(
        ["'event_type': value_json.verdict", *(f"'{name}': value_json.{name}" for name in fields)]
    )
    return {
        "platform": "event",
        "name": "Inspection",
        "icon": "mdi:eye-outline",
        "state_topic": topics.verdict,
        "event_types": _VERDICTS,
        "value_template": (
            f"{{% if not value_json.historical %}}{{{{ {{{event}}} | tojson }}}}{{% endif %}}"
        ),
    }


def _live_text(expression: str) -> str:
    """A template that keeps its entity's state when the verdict is historical."""
    live = f"(({expression}) | string)[:{_LONGEST_STATE}]"
    return f"{{{{ this.state if value_json.historical else {live} }}}}"


def _station(station: Station, topics: Topics) -> dict[str, Entity]:
    """Whether it judges, and why not."""
    words = ", ".join(
        # Home Assistant reserves the attribute `state` for its own.
        f"'{name}': value_json.{field}"
        for name, field in {
            "lifecycle": "state",
            "since": "since",
            "detail": "detail",
            "last_error": "last_error",
            "program": "program",
        }.items()
    )
    alarm: Entity = {
        "platform": "binary_sensor",
        "name": "Alarm",
        "state_topic": topics.state,
        "value_template": "{{ 'ON' if value_json.alarm else 'OFF' }}",
        "device_class": "problem",
        "json_attributes_topic": topics.state,
        "json_attributes_template": "{{ {'alarm': value_json.alarm} | tojson }}",
    }
    return {
        "ready": {
            "platform": "binary_sensor",
            "name": "Ready",
            "state_topic": topics.availability,
            "payload_on": ONLINE.decode(),
            "payload_off": OFFLINE.decode(),
            "device_class": "running",
            # The state itself is no entity: retained, it outlives a station that lost its power.
            "json_attributes_topic": topics.state,
            "json_attributes_template": f"{{{{ {{{words}}} | tojson }}}}",
        }
        | _ALWAYS
        | _DIAGNOSTIC,
        "alarm": alarm if station.alarm_after else _removed("binary_sensor"),
    }


def _counters(station: Station, topics: Topics) -> dict[str, Entity]:
    """Counted since the start of the service; Home Assistant adds up what restarts divide."""

    def sensor(name: str, icon: str, value: str) -> Entity:
        return {
            "platform": "sensor",
            "name": name,
            "icon": icon,
            "state_topic": topics.statistics,
            "value_template": f"{{{{ {value} }}}}",
            # Several periods, so that a late one is no outage.
            "expire_after": max(LEAST_EXPIRY_S, ceil(3 * station.mqtt.statistics_s)),
        } | _ALWAYS

    total = {"state_class": "total_increasing"}
    measurement = {"state_class": "measurement"}
    by_verdict = "value_json.since_start.by_verdict"
    good = "value_json.since_start['yield']"
    return {
        "passed": sensor("Passed", "mdi:check-circle-outline", f"{by_verdict}.get('PASS', 0)")
        | total,
        "failed": sensor("Failed", "mdi:close-circle-outline", f"{by_verdict}.get('FAIL', 0)")
        | total,
        "not_judged": sensor(
            "Not judged", "mdi:help-circle-outline", f"{by_verdict}.get('NOT_JUDGED', 0)"
        )
        | total,
        "yield": sensor("Yield", "mdi:percent-outline", f"none if {good} is none else 100 * {good}")
        | measurement
        | {"unit_of_measurement": "%", "suggested_display_precision": 1},
        "fails_in_a_row": sensor("Fails in a row", "mdi:alert-outline", "value_json.fails_in_a_row")
        | measurement,
        "unsent": sensor("Unsent verdicts", "mdi:tray-full", "value_json.unsent")
        | measurement
        | _DIAGNOSTIC,
    }


def _health(topics: Topics) -> dict[str, Entity]:
    """How pictures and machine do."""

    def entity(platform: str, name: str, value: str, **more: Any) -> Entity:
        return (
            {
                "platform": platform,
                "name": name,
                "state_topic": topics.health,
                "value_template": f"{{{{ {value} }}}}",
                "expire_after": LEAST_EXPIRY_S,
            }
            | _ALWAYS
            | _DIAGNOSTIC
            | more
        )

    def measure(name: str, icon: str, key: str) -> Entity:
        entry = f"value_json.picture.get('{key}')"
        share = f"100 * {entry}.value / {entry}.usual"
        return entity(
            "sensor",
            name,
            f"{share} if {entry} and {entry}.usual else none",
            icon=icon,
            state_class="measurement",
            unit_of_measurement="%",
            suggested_display_precision=0,
        )

    machine = "value_json.machine"
    return {
        "attention": entity(
            "binary_sensor",
            "Attention",
            "'ON' if value_json.warnings else 'OFF'",
            device_class="problem",
            json_attributes_topic=topics.health,
            json_attributes_template="{{ {'warnings': value_json.warnings} | tojson }}",
        ),
        "focus": measure("Focus", "mdi:image-filter-center-focus", "focus"),
        "light": measure("Light", "mdi:brightness-6", "light"),
        "temperature": entity(
            "sensor",
            "Processor temperature",
            f"{machine}.cpu_temperature_c",
            device_class="temperature",
            state_class="measurement",
            unit_of_measurement="°C",
            suggested_display_precision=0,
        ),
        "disk_free": entity(
            "sensor",
            "Free disk space",
            f"none if {machine}.disk_free_bytes is none else {machine}.disk_free_bytes / 1e9",
            device_class="data_size",
            state_class="measurement",
            unit_of_measurement="GB",
            suggested_display_precision=1,
        ),
        "latency": entity(
            "sensor",
            "Trigger to verdict, 99 of 100",
            "value_json.triggers.latency.p99_ms if value_json.triggers.latency else none",
            device_class="duration",
            state_class="measurement",
            unit_of_measurement="ms",
            suggested_display_precision=0,
            enabled_by_default=False,
        ),
    }


def _requests(station: Station, topics: Topics, programs: Iterable[str]) -> dict[str, Entity]:
    """What may be asked of the station, as far as the settings allow it."""
    trigger: Entity = {
        "platform": "button",
        "name": "Trigger",
        "icon": "mdi:camera-iris",
        "command_topic": topics.request("trigger"),
        "payload_press": "{}",
    }
    program: Entity = {
        "platform": "select",
        "name": "Program",
        "icon": "mdi:file-cog-outline",
        "entity_category": "config",
        "state_topic": topics.state,
        "value_template": "{{ value_json.program }}",
        "command_topic": topics.request("program"),
        "command_template": "{{ {'program': value} | tojson }}",
        "options": sorted(programs),
    }
    allowed = station.mqtt.requests
    return {
        "trigger": trigger if "trigger" in allowed else _removed("button"),
        "program": program if "program" in allowed else _removed("select"),
    }


def _removed(platform: str) -> Entity:
    """Nothing but its platform: Home Assistant drops the entity, if it had one."""
    return {"platform": platform}


def _is_removed(entity: Entity) -> bool:
    return entity.keys() == {"platform"}
