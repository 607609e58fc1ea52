"""From the settings to the camera they ask for."""

from __future__ import annotations

from typing import assert_never

from inspectd.camera import Camera
from inspectd.camera.guard import Guarded
from inspectd.settings import (
    OpencvCamera,
    Picamera2Camera,
    RegionOfInterest,
    ReplayCamera,
    Settings,
    SimulatedCamera,
)


def make_camera(settings: Settings) -> Camera:
    """The camera that the station file names, not yet opened.

    Only the module of the driver that is asked for is imported: another's library may be missing.
    A driver that depends on what may hang, a device or a network, is guarded.
    """
    # ruff: noqa: PLC0415 - see above
    match settings.station.camera:
        case Picamera2Camera() as chosen:
            from inspectd.camera import picamera

            return Guarded(picamera.Picamera(chosen, region_to_show(settings)))
        case OpencvCamera() as chosen:
            from inspectd.camera import opencv

            return Guarded(opencv.OpencvCamera(chosen))
        case ReplayCamera() as chosen:
            from inspectd.camera import replay

            path = settings.resolve(chosen.path)
            return Guarded(replay.ReplayCamera(path, chosen.rate, chosen.loop))
        case SimulatedCamera() as chosen:
            from inspectd.camera import simulated

            return simulated.SimulatedCamera(chosen)
    assert_never(settings.station.camera)


def region_to_show(settings: Settings) -> RegionOfInterest | None:
    """The smallest part of the frame that holds the regions of interest of all programs; None where
    one of them looks at the whole frame.
    """
    regions = [program.roi for program in settings.programs.values()]
    known = [roi for roi in regions if roi is not None]
    if len(known) < len(regions):
        return None
    x, y = min(roi.x for roi in known), min(roi.y for roi in known)
    right = max(roi.x + roi.width for roi in known)
    bottom = max(roi.y + roi.height for roi in known)
    return RegionOfInterest(x, y, right - x, bottom - y)
