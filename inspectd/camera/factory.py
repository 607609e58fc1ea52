"""From the settings to the camera they ask for."""

from __future__ import annotations

from inspectd.camera import Camera
from inspectd.settings import ReplayCamera, Settings


def make_camera(settings: Settings) -> Camera:
    """The camera that the station file names, not yet opened.

    Only the module of the driver that is asked for is imported: another's library may be missing.
    """
    chosen = settings.station.camera
    if isinstance(chosen, ReplayCamera):
        from inspectd.camera import replay  # noqa: PLC0415 - see above

        return replay.ReplayCamera(settings.resolve(chosen.path), chosen.rate, chosen.loop)
    from inspectd.camera import simulated  # noqa: PLC0415 - see above

    return simulated.SimulatedCamera(chosen)
