"""The daemon: builds the adapters, owns the threads, and stops them in order.

Threads: the one that judges (camera, inspection, commit), those of the adapters (the camera's
driver, the outbox, paho's network thread, the timer or the pin that asks, the output pins, the
control socket, the archive), the painter, those that report (health, statistics, heartbeat), that
learn programs, watch the settings files, do what is requested and prune the journal, and the
caller's, which only waits for the end.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TypeVar, assert_never

import cv2
import msgspec

import inspectd
from inspectd.archive import Archive
from inspectd.broker import Broker
from inspectd.camera import Camera
from inspectd.camera.factory import make_camera, region_to_show
from inspectd.camera_keeper import CameraKeeper
from inspectd.clock import clock_synchronised
from inspectd.control import (
    ControlServer,
    LookRequest,
    RemoveRequest,
    Reply,
    Request,
    StatusRequest,
    TeachRequest,
)
from inspectd.errors import (
    BrokerState,
    ControlError,
    EndOfFrames,
    GpioUnusable,
    Problem,
    ReferencesError,
)
from inspectd.footprint import exempt_what_is_loaded
from inspectd.gpio import GpioEdge, GpioOutputs
from inspectd.health import HealthMonitor
from inspectd.imaging.heatmap import encode_png
from inspectd.jit import compiling_told
from inspectd.journal import Journal
from inspectd.judging import Conclusion, Judge
from inspectd.looking import Look, Looker
from inspectd.machine import read_machine
from inspectd.mqtt.messages import RequestMessage
from inspectd.mqtt.outbox import JSON, Outbox
from inspectd.mqtt.topics import Topics
from inspectd.painter import Painter
from inspectd.payload import (
    LimitsRequest,
    LotRequest,
    ProgramRequest,
    ReloadRequest,
    ResendRequest,
    SnapshotRequest,
    StatePayload,
    TeachingRequest,
    TriggerRequest,
    encode,
)
from inspectd.programs import Programs
from inspectd.recording import Recorder
from inspectd.records import Frame, Reason, Trigger, TriggerSource
from inspectd.reload import Reloader
from inspectd.requests import Requests
from inspectd.settings import (
    ContinuousTrigger,
    GpioTrigger,
    IntervalTrigger,
    MqttTrigger,
    OutputSettings,
    Picamera2Camera,
    Settings,
    Station,
    TriggerSettings,
)
from inspectd.state import State, StationState
from inspectd.statistics import Heartbeat, Statistics
from inspectd.supervision import Supervisor
from inspectd.systemd import Manager
from inspectd.teaching import (
    Candidate,
    Lesson,
    Taught,
    empty_store,
    reference_store,
    teach,
    teach_empty,
    teach_files,
)
from inspectd.trigger import IntervalTimer, Overrun, TriggerLine, trigger_now

_logger = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_S = 0.1
"""The main thread looks this often whether to stop."""
IDLE_S = 0.5
"""The thread that judges looks up this often when nothing asks for it."""
LAST_PART_S = 0.4
"""What the part at hand may still take when the service stops."""
LAST_MESSAGES_S = 0.6
LAST_PICTURES_S = 0.5
GOODBYE_S = 0.5
OUTBOX_S = 5.0
"""What a request may wait for the thread that sends verdicts; it needs milliseconds."""
SNAPSHOT_EXPIRY_S = 60


class Service:
    """One station: one camera, one journal, one broker."""

    def __init__(
        self,
        settings: Settings,
        problems: tuple[Problem, ...] = (),
        manager: Manager | None = None,
    ) -> None:
        """Build everything, start nothing.

        Args:
            settings: as the files have them.
            problems: of programs that were left out.
            manager: has started this process and is told how the service does; then a camera that
                is unusable is waited for, too.

        Raises:
            JournalUnusable: the journal cannot be opened.
            PermanentError: the path of the control socket is too long.
        """
        self._boot_id = uuid.uuid4().hex
        self._stopping = threading.Event()
        self._camera_tried = threading.Event()
        self._asking = threading.Lock()
        self._at_end = False
        self._error: Exception | None = None
        self._topics = Topics(settings.station.station)
        self._line = TriggerLine(settings.station.queue, lambda: self._programs.present)
        self._teaching = threading.Lock()
        # What is begun under it is also ended: `_stop` comes before or after, never between.
        self._adopting = threading.Lock()
        self._progress_at = 0.0
        self._steps = 0
        self._manager = manager or Manager()
        self._trigger = settings.station.trigger
        self._pins = settings.station.outputs
        self._outputs = GpioOutputs(self._pins)
        self._control = ControlServer(settings.control_socket, self._on_control)
        # Last among what can fail here: whoever has opened it must close it.
        self._journal = Journal.open(
            settings.directory / "journal.db", settings.station.storage.sync
        )
        try:
            self._build(settings, problems)
        except BaseException:
            self._journal.close()
            raise

    def _build(self, settings: Settings, problems: tuple[Problem, ...]) -> None:
        station = settings.station
        self._broker = Broker(settings, self._topics, self._on_request)
        self._state = StationState(self._first_state(settings), self._publish_state)
        self._archive = Archive(
            settings.directory / "archive",
            station.archive,
            partial(self._state.note_trouble, "archive"),
        )
        self._recorder = Recorder(
            self._journal, self._archive, self._state, station.storage, self._on_new_journal
        )
        rate = station.mqtt.backlog_rate
        self._outbox = Outbox(self._recorder, self._broker, self._topics, rate)
        self._programs = Programs(settings, self._on_judged_by, self._state.note_trouble)
        self._looker = Looker(self._programs.settings)
        self._camera = CameraKeeper(
            make_camera(settings), station, self._state, patient=self._manager.is_there
        )
        self._painter = Painter(self._outbox, lambda: self._broker.is_connected)
        self._build_reports(settings)
        self._judge = Judge(
            station,
            self._boot_id,
            self._camera,
            self._programs.lesson,
            self._journal,
            self._recorder,
            self._outbox,
            self._state,
            self._outputs,
            lambda: self._statistics.lot,
            lambda: self._archive.wants_whole,
            [self._painter.paint, self._witness],
        )
        self._requests = Requests(
            lambda: self._settings.station.mqtt.requests,
            self._on_trigger_request,
            {
                "program": self._switch_program,
                "reload": self._reload,
                "lot": self._set_lot,
                "teach": self._teach_by_request,
                "limits": self._set_limit,
                "snapshot": self._take_snapshot,
                "resend": self._resend,
            },
            self._recorder,
            self._outbox.respond,
        )
        self._reloader = Reloader(
            settings,
            problems,
            lambda: self._programs.present,
            self._adopt,
            self._state.note_trouble,
        )
        self._supervisor = Supervisor(
            self._manager,
            station,
            self._state,
            steps=lambda: self._steps,
            is_well=lambda: self._broker.lives and not self._camera.hangs,
            ping=self._outbox.ping,
            reload_is_pending=lambda: self._reloader.is_pending,
        )
        self._source = self._make_source(station.trigger)
        self._judging = threading.Thread(target=self._judge_until_stopped, name="judge")

    def _build_reports(self, settings: Settings) -> None:
        self._health = HealthMonitor(
            settings.station.station,
            settings.station.program,
            times_lost=lambda: self._camera.times_lost,
            read_machine=partial(read_machine, settings.directory),
            publish=partial(self._broker.publish_retained, self._topics.health),
        )
        self._statistics = Statistics(
            settings.station,
            self._boot_id,
            settings.directory,
            waiting=lambda: self._line.waiting,
            unsent=self._recorder.unsent_count,
            heatmaps_dropped=lambda: self._painter.dropped,
            alarm=self._state.alarm,
            publish=partial(self._broker.publish_retained, self._topics.statistics),
        )
        self._heartbeat = Heartbeat(
            self._boot_id,
            self._can_judge,
            partial(self._broker.publish, self._topics.heartbeat, qos=0, content_type=JSON),
        )

    @property
    def _settings(self) -> Settings:
        """Those in force."""
        return self._programs.settings

    def request_stop(self) -> None:
        """Ask the service to stop; may be called from a signal handler."""
        self._stopping.set()

    def request_reload(self) -> None:
        """Ask for the settings files to be read; may be called from a signal handler, which runs
        on the thread of `run`.
        """
        self._reloader.ask()
        self._supervisor.on_reload()

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
                self._report_broker()
                self._supervisor.tend()
            if self._error is None:
                self._supervisor.stopping()
        finally:
            self._stop()
        if self._error is not None:
            raise self._error

    def _report_broker(self) -> None:
        """All of it is in the log; with no broker to publish to, `inspectd status` shows it."""
        self._state.note_trouble("broker", self._broker.trouble, logged=True)
        self._state.note_trouble("sparkplug", self._broker.sparkplug_trouble, logged=True)
        self._state.note_trouble("messages", self._outbox.trouble, logged=True)
        broker = BrokerState.worst((self._broker.state, self._outbox.state))
        self._state.note_broker(broker, self._broker.sparkplug_state)

    # ---- start and stop --------------------------------------------------------------------------

    def _start(self) -> None:
        _logger.info(
            "station %s, program %s, settings %s",
            self._settings.station.station,
            self._settings.station.program,
            self._settings.hash,
        )
        self._outputs.open()
        self._outbox.start()
        self._painter.start()
        self._archive.start()
        self._broker.start(self._outbox, self._recorder)
        self._health.start()
        self._statistics.restore(self._journal)
        self._statistics.start()
        if not self._learn_first():
            return
        exempt_what_is_loaded()
        self._programs.start()
        self._control.start()
        self._requests.start()
        self._recorder.start()
        self._judging.start()
        self._heartbeat.start()
        self._supervisor.wait_for_camera()
        while not self._camera_tried.wait(WATCH_S):
            if self._stopping.is_set():
                return
        self._state.clear(State.STARTING)
        if self._source is not None:
            self._source.start()
        self._reloader.start()

    def _stop(self) -> None:
        """In the order of a part's way: nothing that is on it is lost."""
        self._stopping.set()  # not yet where the start failed
        self._state.hinder(State.STOPPING, "")
        with self._adopting:
            pass  # other settings that are being put in force come first; none do from now on
        self._heartbeat.stop()
        self._reloader.stop()
        if self._source is not None:
            self._source.stop()
        self._control.stop()
        self._requests.stop()
        self._programs.stop()
        self._line.wake()
        if self._judging.is_alive():
            self._judging.join(LAST_PART_S)
        self._camera.close()
        while self._judging.is_alive():
            self._judging.join(LAST_PART_S)
            self._camera.close()  # once more: it may have been about to be opened
        self._refuse_waiting()
        self._outputs.close()
        self._recorder.stop()
        self._archive.stop(LAST_PICTURES_S)
        self._statistics.stop()
        self._health.stop()
        self._painter.stop()
        if not self._outbox.drain(LAST_MESSAGES_S) and self._broker.is_connected:
            _logger.warning("some verdicts are not acknowledged yet; they follow at the next start")
        self._broker.stop(GOODBYE_S)
        self._outbox.close()
        self._journal.close()
        _logger.info("stopped")

    def _refuse_waiting(self) -> None:
        while (work := self._line.take(0)) is not None:
            if isinstance(work, Overrun):
                work = work.trigger
            if not isinstance(work, Trigger):
                continue
            if self._at_end and not work.source.from_outside:
                continue  # a recording has no further part that it could be meant for
            self._judge.refuse(work, Reason.STOPPING, "the service is stopping")

    def _make_source(self, settings: TriggerSettings) -> IntervalTimer | GpioEdge | None:
        """What asks for verdicts by itself."""
        match settings:
            case IntervalTrigger(interval_s=interval_s):
                return IntervalTimer(interval_s, self._line)
            case GpioTrigger() as trigger:
                return GpioEdge(trigger, partial(self._on_edge, trigger.delay_ms))
            case ContinuousTrigger() | MqttTrigger():
                return None

    def _on_edge(self, delay_ms: float, edge_ns: int) -> None:
        """On the thread of the pin."""
        self._ask(trigger_now(TriggerSource.GPIO, requested_ns=edge_ns, delay_ms=delay_ms))

    def _ask(self, trigger: Trigger) -> None:
        # In this order: the answer may follow at once.
        with self._asking:
            self._outputs.busy(on=True)
            self._line.put(trigger)

    # ---- the thread that judges ------------------------------------------------------------------

    def _judge_until_stopped(self) -> None:
        try:
            # Not on the caller's thread: a driver that hangs must not keep it from stopping.
            self._camera.tend_idle()
            self._camera_tried.set()
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
        self._progress_at = time.monotonic()
        self._steps += 1
        # Without a camera no picture asks for a verdict, and each would be "camera lost" at once.
        continuous = self._camera.is_open and isinstance(self._trigger, ContinuousTrigger)
        work = self._line.take(0 if continuous else IDLE_S)
        if work is None and continuous:
            work = trigger_now(TriggerSource.CONTINUOUS)
        match work:
            case None:
                self._camera.tend_idle()
                self._judge.tend()
            case Trigger():
                self._judge.answer(work)
            case Overrun(trigger):
                waiting = self._line.bound
                self._judge.refuse(
                    trigger, Reason.OVERRUN, f"{waiting} triggers were waiting already"
                )
            case _:
                work()
        with self._asking:
            if not self._line.has_parts:
                self._outputs.busy(on=False)

    def _can_judge(self) -> bool:
        """For the heartbeat: also whether the thread that judges gets on."""
        longest = 2 * IDLE_S + self._settings.station.capture_timeout_s
        getting_on = time.monotonic() - self._progress_at < longest
        return getting_on and self._state.payload.state == State.JUDGING

    def _witness(self, conclusion: Conclusion) -> None:
        verdict = conclusion.verdict
        self._broker.offer(verdict)
        self._supervisor.note(verdict)
        self._statistics.note(verdict)
        self._archive.offer(verdict, conclusion.frame, conclusion.inspection)
        self._health.note(conclusion.inspection, conclusion.frame, verdict.timings_ms)

    def _on_new_journal(self) -> None:
        self._outbox.journal_replaced(self._journal.id)
        self._broker.journal_replaced(self._journal.id)

    # ---- MQTT ------------------------------------------------------------------------------------

    def _on_request(self, name: str, message: RequestMessage) -> None:
        """On paho's thread."""
        self._requests.receive(name, message)

    def _on_trigger_request(
        self, request: TriggerRequest, message: RequestMessage, asked_ns: int
    ) -> None:
        """On paho's thread: only let it wait."""
        self._ask(
            trigger_now(
                TriggerSource.MQTT,
                part_id=request.part_id,
                transaction=request.transaction,
                response_topic=message.response_topic,
                correlation_data=message.correlation_data,
                requested_ns=asked_ns,
                queued=message.queued,
                sent_after_ns=message.sent_after_ns,
                acknowledge=message.acknowledge,
            )
        )

    def _switch_program(self, request: ProgramRequest) -> str:
        self._programs.switch(request.program)
        self._looker.adopt(self._settings)
        return f"program {request.program} judges the triggers that come from now on"

    def _reload(self, _request: ReloadRequest) -> str:
        return self._reloader.reload()

    def _set_lot(self, request: LotRequest) -> str:
        self._statistics.set_lot(request.name)
        return "no lot" if request.name is None else f"lot {request.name}"

    def _teach_by_request(self, request: TeachingRequest) -> str:
        program = request.program or self._programs.present
        taught = self._teach(
            TeachRequest(program=program, empty=request.empty, frames=request.frames), ()
        )
        refused = "".join(f"; {one.name} refused: {one.reason}" for one in taught.refused)
        if refused and not taught.added:
            raise ControlError(f"program {program}: nothing was added{refused}")
        return f"program {program}: {len(taught.added)} added, {taught.total} now{refused}"

    def _set_limit(self, request: LimitsRequest) -> str:
        program = request.program or self._programs.present
        self._programs.set_threshold(program, request.region, request.threshold)
        self._looker.adopt(self._settings)
        what = f"region {request.region} of {program}" if request.region else f"program {program}"
        if request.threshold is None:
            return f"the threshold of {what} is that of the file"
        return f"the threshold of {what} is {request.threshold:g}"

    def _take_snapshot(self, _request: SnapshotRequest) -> str:
        (frame,) = self._frames_from_camera(1)
        self._broker.publish(
            self._topics.snapshot,
            encode_png(frame.pixels),
            content_type="image/png",
            expiry_s=SNAPSHOT_EXPIRY_S,
            user_properties=(("frame", frame.name),),
        )
        height, width = frame.pixels.shape[:2]
        return f"picture {frame.name}, {width} x {height} pixels, is on topic snapshot"

    def _resend(self, request: ResendRequest) -> str:
        last = min(request.last, self._recorder.last_seq())
        marked = self._mark_unsent(request.first, last) if request.first <= last else 0
        if not marked:
            raise ControlError(
                f"the journal keeps no verdict from {request.first} to {request.last}; the last "
                f"one is {self._recorder.last_seq()}"
            )
        return f"verdicts that follow once more, marked historical: {marked}"

    def _mark_unsent(self, first: int, last: int) -> int:
        try:
            if not self._outbox.forget_sent(first, last, OUTBOX_S):
                raise ControlError(
                    f"the thread that sends verdicts has been busy for {OUTBOX_S:g} s; ask again"
                )
            return self._recorder.mark_unsent(first, last)
        finally:  # whatever was forgotten goes again, also where the rest fails
            self._outbox.look_back()

    # ---- other settings --------------------------------------------------------------------------

    def _on_judged_by(self, lesson: Lesson) -> None:
        """Another lesson has come into force; on any thread."""
        self._state.note(
            program=lesson.program,
            settings_hash=lesson.settings_hash,
            references=lesson.inspector.reference_count,
            references_hash=lesson.references_hash,
            empties=lesson.empties,
        )
        if lesson.hindrance:
            self._state.hinder(State.NOT_READY, lesson.hindrance)
        else:
            self._state.clear(State.NOT_READY)
        self._health.reset(lesson.program)
        self._statistics.adopt(self._station_judging_by(lesson.program))

    def _station_judging_by(self, program: str) -> Station:
        return msgspec.structs.replace(self._settings.station, program=program)

    def _adopt(self, filed: Settings) -> None:
        """The files have changed; on a thread that may wait.

        Raises:
            ControlError: too late; nothing has changed.
        """
        with self._adopting:
            if self._stopping.is_set():
                raise ControlError("the service is stopping")
            self._put_in_force(filed)

    def _put_in_force(self, filed: Settings) -> None:
        before, now = self._settings, self._programs.settings_by(filed)
        station = now.station
        camera = make_camera(now) if _camera_of(before) != _camera_of(now) else None
        self._broker.adopt(now)  # which need not wait for a camera that does not answer
        self._between_parts(lambda: self._adopt_between_parts(filed, station, camera))
        self._line.bound = station.queue
        self._supervisor.adopt(station)
        self._archive.adopt(station.archive)
        self._recorder.adopt(station.storage)
        self._statistics.adopt(self._station_judging_by(self._programs.present))
        self._looker.adopt(self._settings)
        self._outbox.set_backlog_rate(station.mqtt.backlog_rate)
        if station.trigger != self._trigger:
            self._replace_source(station.trigger)

    def _adopt_between_parts(
        self, filed: Settings, station: Station, camera: Camera | None
    ) -> None:
        """All that a part is judged by, so that it is judged by all of it or by nothing of it; on
        the thread that judges.
        """
        self._programs.adopt(filed)
        self._camera.adopt(station)
        if camera is not None:
            self._camera.replace(camera)
        if station.outputs != self._pins:
            self._replace_outputs(station.outputs)
        self._judge.adopt(station, self._outputs)

    def _replace_outputs(self, settings: OutputSettings) -> None:
        self._outputs.close()
        words = ""
        for wanted in (settings, self._pins, OutputSettings()):
            outputs = GpioOutputs(wanted)
            try:
                outputs.open()
            except GpioUnusable as error:
                words = words or f"the output pins are not those of the settings: {error}"
                continue
            self._pins = wanted
            break
        self._state.note_trouble("outputs", words)
        with self._asking:
            self._outputs = outputs
            outputs.ready(self._state.payload.state == State.JUDGING)
            outputs.busy(on=self._line.has_parts)

    def _replace_source(self, trigger: TriggerSettings) -> None:
        before = self._trigger
        if self._source is not None:
            self._source.stop()
        self._source = None
        words = ""
        for wanted in (trigger, before):
            source = self._make_source(wanted)
            try:
                if source is not None:
                    source.start()
            except GpioUnusable as error:
                words = words or f"the trigger stays as it was: {error}"
                continue
            self._source, self._trigger = source, wanted
            break
        self._state.note_trouble("trigger", words)
        self._line.wake()

    # ---- the control socket ----------------------------------------------------------------------

    def _on_control(self, request: Request, pictures: Sequence[bytes]) -> Reply:
        """On a thread of the control socket.

        Raises:
            InspectdError: the request cannot be fulfilled.
        """
        match request:
            case StatusRequest():
                file = str(self._settings.path.absolute())
                return Reply(state=self._state.payload, settings=file)
            case RemoveRequest():
                store = reference_store(self._settings, self._programs.require(request.program))
                if request.empty:
                    store = empty_store(store)
                with self._teaching:
                    removed = store.remove(request.names)
                    self._learn_again(request.program)
                return Reply(removed=tuple(entry.file for entry in removed))
            case TeachRequest():
                return Reply(taught=self._teach(request, pictures))
            case LookRequest():
                return Reply(look=self._look(request))
        assert_never(request)

    def _teach(self, request: TeachRequest, pictures: Sequence[bytes]) -> Taught:
        name = self._programs.require(request.program)
        program, store = self._settings.programs[name], reference_store(self._settings, name)
        candidates = self._candidates_from_camera(request.frames) if request.frames else []
        with self._teaching:
            if request.frames:
                take = teach_empty if request.empty else teach
                taught = take(program, store, candidates, self._settings.hash)
            else:
                names = [header.name for header in request.pictures]
                files = list(zip(names, pictures, strict=True))
                taught = teach_files(
                    program, store, files, self._settings.hash, empty=request.empty
                )
            self._learn_again(name)
        return taught

    def _look(self, request: LookRequest) -> Look:
        name = self._programs.require(request.program)
        (frame,) = self._frames_from_camera(1)
        return self._looker.look(frame, name)

    def _learn_again(self, program: str) -> None:
        """Derive anew from the references; the thread that judges takes it over between parts."""
        self._looker.forget(program)
        self._programs.learn_again(program)

    def _learn_first(self) -> bool:
        """Learn the program in force; False if the service is to stop meanwhile.

        Learning may compile kernels, which takes longer than a stop may and cannot be interrupted:
        the thread that does it is left to the end of the process.
        """
        learned: Future[None] = Future()

        def learn() -> None:
            try:
                with compiling_told(self._supervisor.note_compiling):
                    self._programs.learn_first()
                learned.set_result(None)
            except Exception as error:  # noqa: BLE001 - raised again on the caller's thread
                learned.set_exception(error)

        threading.Thread(target=learn, name="first-lesson", daemon=True).start()
        words = self._first_lesson_in_words()
        while not self._stopping.is_set():
            self._supervisor.tend_learning(words)
            with contextlib.suppress(TimeoutError):
                learned.result(WATCH_S)
                return True
        return False

    def _first_lesson_in_words(self) -> str:
        name = self._programs.present
        try:
            count = len(reference_store(self._settings, name).entries())
        except ReferencesError:  # which the lesson tells of as well
            count = 0
        return f"learning {name} from {count} references"

    def _candidates_from_camera(self, count: int) -> list[Candidate]:
        return [
            Candidate(frame.name, frame.pixels, frame.captured_at, frame.view)
            for frame in self._frames_from_camera(count)
        ]

    def _frames_from_camera(self, count: int) -> list[Frame]:
        """Pictures of this moment, each taken between two parts by the thread that owns the camera.

        Raises:
            CameraError: the camera gave none.
            ControlError: the service is stopping.
        """
        return [
            self._between_parts(lambda: self._camera.capture(time.monotonic_ns()))
            for _ in range(count)
        ]

    def _between_parts(self, act: Callable[[], T]) -> T:
        """Have something done by the thread that judges; returns, and raises, what it does.

        Raises:
            ControlError: the service is stopping, and it was not done.
        """
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(act())
            except Exception as error:  # noqa: BLE001 - raised again on the caller's thread
                done.set_exception(error)

        self._line.call(run)
        while not wait([done], IDLE_S).done:
            if self._stopping.is_set() and done.cancel():
                raise ControlError("the service is stopping")
        return done.result()

    # ---- state -----------------------------------------------------------------------------------

    def _publish_state(self, payload: StatePayload, available: bool) -> None:
        self._broker.publish_retained(self._topics.state, encode(payload))
        self._broker.set_available(available)
        self._outputs.ready(available)

    def _first_state(self, settings: Settings) -> StatePayload:
        return StatePayload(
            state=State.STARTING.value,
            station=settings.station.station,
            program=settings.station.program,
            settings_hash=settings.hash,
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


def _camera_of(settings: Settings) -> tuple[object, ...]:
    """What the camera is made from."""
    camera = settings.station.camera
    shown = region_to_show(settings) if isinstance(camera, Picamera2Camera) else None
    return camera, shown
