"""The daemon: builds the adapters, owns the threads, and stops them in order.

Threads: the one that judges (camera, inspection, commit), the outbox, paho's network thread, the
interval timer, the control socket's, and the caller's, which only waits for the end.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from importlib.metadata import version
from typing import assert_never

import cv2
import msgspec

import inspectd
from inspectd.camera.factory import make_camera
from inspectd.clock import clock_synchronised
from inspectd.control import (
    ControlServer,
    RemoveRequest,
    Reply,
    Request,
    StatusRequest,
    TeachRequest,
)
from inspectd.errors import CameraError, ControlError, EndOfFrames
from inspectd.journal import Journal
from inspectd.judging import CameraKeeper, Judge, Painter
from inspectd.mqtt.client import MqttClient, RequestMessage
from inspectd.mqtt.outbox import Outbox, ReplyTo
from inspectd.mqtt.topics import Topics
from inspectd.payload import Response, StatePayload, TriggerRequest, encode
from inspectd.records import Frame, Reason, Trigger, TriggerSource
from inspectd.settings import ContinuousTrigger, IntervalTrigger, Settings
from inspectd.state import State, StationState
from inspectd.teaching import (
    Candidate,
    Lesson,
    Taught,
    learn_program,
    reference_store,
    teach,
    teach_files,
)
from inspectd.trigger import IntervalTimer, Overrun, TriggerLine, trigger_now

_logger = logging.getLogger(__name__)

WATCH_S = 0.1
"""The main thread looks this often whether to stop."""
IDLE_S = 0.5
"""The thread that judges looks up this often when nothing asks for it."""
LAST_PART_S = 0.4
"""What the part at hand may still take when the service stops."""
LAST_MESSAGES_S = 0.6
GOODBYE_S = 0.5


class Service:
    """One station: one camera, one journal, one broker."""

    def __init__(self, settings: Settings) -> None:
        """Build everything, start nothing.

        Raises:
            JournalUnusable: the journal cannot be opened.
            PermanentError: the path of the control socket is too long.
        """
        self._settings = settings
        self._boot_id = uuid.uuid4().hex
        self._stopping = threading.Event()
        self._at_end = False
        self._error: Exception | None = None
        self._topics = Topics(settings.station.station)
        self._line = TriggerLine(settings.station.queue)
        self._teaching = threading.Lock()
        self._control = ControlServer(settings.control_socket, self._on_control)
        # Last among what can fail here: whoever has opened it must close it.
        self._journal = Journal.open(settings.directory / "journal.db")
        self._client = MqttClient(
            settings.station.mqtt,
            self._topics,
            f"inspectd-{settings.station.station}",
            self._on_request,
        )
        self._outbox = Outbox(self._journal, self._client, self._topics)
        self._state = StationState(self._first_state(), self._publish_state)
        self._camera = CameraKeeper(
            make_camera(settings), settings.station.capture_timeout_s, self._state
        )
        self._painter = Painter(settings, self._outbox, lambda: self._client.is_connected)
        self._judge = Judge(
            settings,
            self._boot_id,
            self._camera,
            self._journal,
            self._outbox,
            self._state,
            self._painter,
        )
        self._timer = self._make_timer()
        self._judging = threading.Thread(target=self._judge_until_stopped, name="judge")

    def request_stop(self) -> None:
        """Ask the service to stop; may be called from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Run until `request_stop`, or until a recording has come to its end.

        Raises:
            InspectdError: what kept the service from starting, or from going on.
        """
        try:
            self._start()
            # Not `_stopping.wait`: a signal that comes while the main thread is about to block in
            # it stays unseen until the thread wakes, which nothing else would make it do.
            while not self._stopping.is_set():
                time.sleep(WATCH_S)
        finally:
            self._stop()
        if self._error is not None:
            raise self._error

    # ---- start and stop --------------------------------------------------------------------------

    def _start(self) -> None:
        _logger.info(
            "station %s, program %s, settings %s",
            self._settings.station.station,
            self._settings.station.program,
            self._settings.hash,
        )
        self._outbox.start()
        self._painter.start()
        self._client.start(self._outbox)
        lesson = self._first_lesson()
        if lesson is None:
            return
        self._judge.judge_by(lesson)
        self._camera.tend()
        self._control.start()
        self._judging.start()
        self._state.clear(State.STARTING)
        if self._timer is not None:
            self._timer.start()

    def _stop(self) -> None:
        """In the order of a part's way: nothing that is on it is lost."""
        self._state.hinder(State.STOPPING, "")
        if self._timer is not None:
            self._timer.stop()
        self._control.stop()
        self._line.wake()
        if self._judging.is_alive():
            self._judging.join(LAST_PART_S)
        self._camera.close()
        if self._judging.is_alive():
            self._judging.join()
        self._refuse_waiting()
        self._painter.stop()
        if not self._outbox.drain(LAST_MESSAGES_S) and self._client.is_connected:
            _logger.warning("some verdicts are not acknowledged yet; they follow at the next start")
        self._client.stop(GOODBYE_S)
        self._outbox.close()
        self._journal.close()
        _logger.info("stopped")

    def _refuse_waiting(self) -> None:
        while (work := self._line.take(0)) is not None:
            if isinstance(work, Overrun):
                work = work.trigger
            if not isinstance(work, Trigger):
                continue
            if self._at_end and work.source is not TriggerSource.MQTT:
                continue  # a recording has no further part that it could be meant for
            self._judge.refuse(work, Reason.STOPPING, "the service is stopping")

    def _make_timer(self) -> IntervalTimer | None:
        trigger = self._settings.station.trigger
        if isinstance(trigger, IntervalTrigger):
            return IntervalTimer(trigger.interval_s, self._line)
        return None

    # ---- the thread that judges ------------------------------------------------------------------

    def _judge_until_stopped(self) -> None:
        try:
            while not self._stopping.is_set():
                self._judge_next()
        except EndOfFrames as error:
            _logger.info("%s", error)
            self._at_end = True
        except Exception as error:  # noqa: BLE001 - raised again by `run`, on the caller's thread
            self._error = error
        finally:
            self._stopping.set()

    def _judge_next(self) -> None:
        # Without a camera no picture asks for a verdict, and each would be "camera lost" at once.
        continuous = self._camera.is_open and isinstance(
            self._settings.station.trigger, ContinuousTrigger
        )
        work = self._line.take(0 if continuous else IDLE_S)
        if work is None and continuous:
            work = trigger_now(TriggerSource.CONTINUOUS)
        match work:
            case None:
                self._camera.tend()
                self._judge.tend()
            case Trigger():
                self._judge.answer(work)
            case Overrun(trigger):
                waiting = self._settings.station.queue
                self._judge.refuse(
                    trigger, Reason.OVERRUN, f"{waiting} triggers were waiting already"
                )
            case _:
                work()

    # ---- MQTT ------------------------------------------------------------------------------------

    def _on_request(self, name: str, message: RequestMessage) -> None:
        """On paho's thread: only sort it, and let it wait."""
        where = ReplyTo(name, message.response_topic, message.correlation_data)
        transaction = None
        try:
            if name != "trigger":
                raise ControlError(f"there is no request {name!r}; known is: trigger")
            request = msgspec.json.decode(message.payload or b"{}", type=TriggerRequest)
            transaction = request.transaction
            if message.retain:
                raise ControlError(
                    "the request was retained by the broker, nobody knows since when: "
                    "send requests without the retain flag"
                )
            if self._stopping.is_set():
                raise ControlError("the service is stopping")
        # msgspec lets the UnicodeDecodeError of a text within the JSON through as it is.
        except (ControlError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _logger.warning("request/%s is refused: %s", name, error)
            refusal = Response(request=name, transaction=transaction, ok=False, error=str(error))
            self._outbox.respond(where, refusal)
            return
        self._line.put(
            trigger_now(
                TriggerSource.MQTT,
                part_id=request.part_id,
                transaction=request.transaction,
                response_topic=message.response_topic,
                correlation_data=message.correlation_data,
            )
        )

    # ---- the control socket ----------------------------------------------------------------------

    def _on_control(self, request: Request, pictures: Sequence[bytes]) -> Reply:
        """On a thread of the control socket.

        Raises:
            InspectdError: the request cannot be fulfilled.
        """
        match request:
            case StatusRequest():
                return Reply(state=self._state.payload)
            case RemoveRequest():
                store = reference_store(self._settings, self._known(request.program))
                with self._teaching:
                    removed = store.remove(request.names)
                    self._learn_again(request.program)
                return Reply(removed=tuple(entry.file for entry in removed))
            case TeachRequest():
                return Reply(taught=self._teach(request, pictures))
        assert_never(request)

    def _known(self, program: str) -> str:
        if program not in self._settings.programs:
            known = ", ".join(sorted(self._settings.programs))
            raise ControlError(f"there is no program {program!r}; there are: {known}")
        return program

    def _teach(self, request: TeachRequest, pictures: Sequence[bytes]) -> Taught:
        name = self._known(request.program)
        program, store = self._settings.programs[name], reference_store(self._settings, name)
        candidates = self._candidates_from_camera(request.frames) if request.frames else []
        with self._teaching:
            if request.frames:
                taught = teach(program, store, candidates, self._settings.hash)
            else:
                names = [header.name for header in request.pictures]
                files = list(zip(names, pictures, strict=True))
                taught = teach_files(program, store, files, self._settings.hash)
            self._learn_again(name)
        return taught

    def _learn_again(self, program: str) -> None:
        """Derive anew from the references; the thread that judges takes it over between parts."""
        if program == self._settings.station.program:
            lesson = self._lesson()
            self._line.call(lambda: self._judge.judge_by(lesson))

    def _lesson(self) -> Lesson:
        lesson = learn_program(self._settings, self._settings.station.program)
        for problem in (*lesson.problems, *lesson.doubts):
            _logger.warning("%s", problem)
        return lesson

    def _first_lesson(self) -> Lesson | None:
        """Learn, or None if the service is to stop meanwhile.

        Learning may compile kernels, which takes longer than a stop may and cannot be interrupted:
        the thread that does it is left to the end of the process.
        """
        learned: Future[Lesson] = Future()

        def learn() -> None:
            try:
                learned.set_result(self._lesson())
            except Exception as error:  # noqa: BLE001 - raised again on the caller's thread
                learned.set_exception(error)

        threading.Thread(target=learn, name="first-lesson", daemon=True).start()
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                return learned.result(WATCH_S)
        return None

    def _candidates_from_camera(self, count: int) -> list[Candidate]:
        """Pictures of this moment, taken between two parts by the thread that owns the camera.

        Raises:
            CameraError: the camera gave none.
        """
        frames: list[Frame] = []
        failed: list[CameraError] = []
        done = threading.Event()

        def take_one() -> None:
            try:
                frames.append(self._camera.capture(time.monotonic_ns()))
            except CameraError as error:
                failed.append(error)
            if failed or len(frames) == count:
                done.set()
            else:
                self._line.call(take_one)

        self._line.call(take_one)
        while not done.wait(IDLE_S):
            if self._stopping.is_set():
                raise ControlError("the service is stopping")
        if failed:
            raise failed[0]
        return [Candidate(frame.name, frame.pixels, frame.captured_at) for frame in frames]

    # ---- state -----------------------------------------------------------------------------------

    def _publish_state(self, payload: StatePayload, available: bool) -> None:
        self._client.publish_retained(self._topics.state, encode(payload))
        self._client.set_available(available)

    def _first_state(self) -> StatePayload:
        return StatePayload(
            state=State.STARTING.value,
            station=self._settings.station.station,
            program=self._settings.station.program,
            settings_hash=self._settings.hash,
            versions={
                "inspectd": inspectd.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "numba", "paho-mqtt")},
                "opencv": cv2.__version__,
            },
            journal_id=self._journal.id,
            boot_id=self._boot_id,
            clock_synchronised=clock_synchronised(),
            since=datetime.now(UTC),
        )
