"""The image pipeline's tuning without what adapts itself to the scene."""

import copy

import pytest

from inspectd.camera.tuning import without_adaptation

CONTRAST = {"ce_enable": 1, "gamma_curve": [0, 0, 65535, 65535]}
SHADING = {"n_iter": 100, "luminance_strength": 0.8}
OTHER = {"bayes": 1}
VERSION_1 = {"rpi.contrast": CONTRAST, "rpi.alsc": SHADING, "rpi.awb": OTHER}
VERSION_2 = {
    "version": 2.0,
    "target": "bcm2835",
    "algorithms": [{"rpi.contrast": CONTRAST}, {"rpi.alsc": SHADING}, {"rpi.awb": OTHER}],
}


def algorithm(tuning, name):
    if "algorithms" not in tuning:
        return tuning[name]
    return next(one for one in tuning["algorithms"] if name in one)[name]


@pytest.mark.parametrize("tuning", [VERSION_1, VERSION_2], ids=["version 1", "version 2"])
def test_contrast_and_shading_are_fixed_and_nothing_else_changes(tuning):
    before = copy.deepcopy(tuning)
    fixed = without_adaptation(tuning)
    assert tuning == before
    assert algorithm(fixed, "rpi.contrast") == {**CONTRAST, "ce_enable": 0}
    assert algorithm(fixed, "rpi.alsc") == {**SHADING, "n_iter": 0}
    assert algorithm(fixed, "rpi.awb") == OTHER


@pytest.mark.parametrize("tuning", [{}, {"version": 2.0, "algorithms": []}, {"rpi.awb": OTHER}])
def test_a_tuning_without_them_stays_as_it_is(tuning):
    assert without_adaptation(tuning) == tuning
