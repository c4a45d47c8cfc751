"""The numbers that a report opens with, of a made-up comparison, and the page that shows them in a browser."""

from dataclasses import replace

import pytest
import torch
from browser import started

from ardistill.evaluation import BootstrapInterval, Comparison

ARMS = {
    "teacher": {"fd": 0.2, "fd_to_teacher": 0.0, "nfe": 48, "ms_per_image": 100.0, "feature_distance_to_teacher": 0.0},
    "plain": {"fd": 0.24, "fd_to_teacher": 0.02, "nfe": 4, "ms_per_image": 8.0, "feature_distance_to_teacher": 0.5},
    "ard": {"fd": 0.23, "fd_to_teacher": 0.01, "nfe": 4, "ms_per_image": 8.0, "feature_distance_to_teacher": 0.45},
}


def comparison(**fields):
    """ARD, with history, beside the same student without it."""
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = Comparison(
        arms=ARMS,
        intervals={"ard": BootstrapInterval(-0.05, -0.06, -0.04)},
        baseline="plain",
        images=dict.fromkeys(ARMS, images),
        labels=torch.arange(20),
        feature_network="fashion-classifier",
        floor=0.07,
        notes=["A note."],
        error_per_step={
            arm: {"free_running": [0.01, 0.02], "teacher_forced": [0.01, 0.004]} for arm in ("plain", "ard")
        },
        selected="ard",
        with_history=("ard",),
    )
    return replace(found, **fields)


def without(*keys):
    return {arm: {key: value for key, value in row.items() if key not in keys} for arm, row in ARMS.items()}


def test_the_three_numbers():
    speed, quality, history = comparison().headlines
    assert speed[:2] == ("12.5×", "as fast as the teacher")
    assert "125 images per second and the teacher 10," in speed.sentence
    assert "4 evaluations of the network instead of 48" in speed.sentence
    assert quality[:2] == ("0.030", "FD given up")
    assert "at FD 0.230 to the data and the teacher's at 0.200" in quality.sentence and "0.070" in quality.sentence
    assert history[:2] == ("-0.0500", "distance to the teacher by history")
    assert history.sentence.startswith("ARD is ahead of plain,")
    assert "-0.0600 to -0.0400" in history.sentence and "-10.0% of plain's 0.500" in history.sentence
    text = comparison().table()
    assert text.endswith(history.sentence) and "125 images per second" in text


def test_what_is_not_known_is_left_out():
    assert comparison(selected=None).headlines == []
    assert len(comparison(with_history=()).headlines) == 2
    assert len(comparison(baseline=None).headlines) == 2
    no_time, *_ = comparison(arms=without("ms_per_image")).headlines
    assert no_time[:2] == ("12.0×", "fewer evaluations than the teacher") and "second" not in no_time.sentence
    assert comparison(arms=without("ms_per_image", "nfe")).headlines[0].name == "FD given up"
    _, no_reference, _ = comparison(arms=without("fd"), floor=None).headlines
    assert no_reference[:2] == ("0.010", "FD to the teacher")
    assert len(comparison(arms=without("fd", "fd_to_teacher")).headlines) == 2


def test_a_better_student_and_a_worse_history():
    arms = ARMS | {"ard": ARMS["ard"] | {"fd": 0.19}}
    _, quality, history = comparison(arms=arms, intervals={"ard": BootstrapInterval(0.05, 0.04, 0.06)}).headlines
    assert quality[:2] == ("0.010", "FD gained on the teacher")
    assert history.figure == "+0.0500" and "ARD is behind plain" in history.sentence


def test_history_is_that_of_the_nearest_student_where_the_selected_one_has_none():
    intervals = {"ard": BootstrapInterval(-0.05, -0.06, -0.04), "more": BootstrapInterval(-0.07, -0.08, -0.06)}
    found = comparison(arms=ARMS | {"more": ARMS["ard"]}, intervals=intervals, with_history=("ard", "more"))
    assert found.headlines[2].figure == "-0.0500"
    assert replace(found, selected="plain").headlines[2].sentence.startswith("more is ahead of plain")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_theme(tmp_path, theme):
    comparison(adherence={}, notes=["An_address_without_any_space_" * 4]).write(tmp_path / "out", "report")
    with started(tmp_path) as browser:
        screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get((tmp_path / "out" / "report.html").as_uri())
        browser.execute_script("document.querySelector('details').open = true")
        wide = browser.execute_script("return [document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= 390
        shown = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert browser.execute_script(shown, "body", "backgroundColor") == (
            "rgb(255, 255, 255)" if theme == "light" else "rgb(23, 25, 28)"
        )
        assert browser.execute_script(shown, ".plot", "mixBlendMode") == ("multiply" if theme == "light" else "screen")
        assert browser.execute_script(shown, ".samples img", "imageRendering") == "pixelated"
        boxes = "return [...document.querySelectorAll(arguments[0])].map(x => x.getBoundingClientRect().right)"
        assert max(browser.execute_script(boxes, ".headlines > div, .plot, dd, li")) <= 390
        assert all(browser.execute_script("return [...document.images].map(x => x.naturalWidth > 0)"))
