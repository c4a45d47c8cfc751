"""The page in a real browser: it loads, draws, goes through the steps, changes its student, and shows errors."""

import numpy as np
import pytest
from browser import Page, started

from ardistill.demo.answers import enlarged
from ardistill.demo.demo import start
from ardistill.demo.studio import Studio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(runs) -> Studio:
    return Studio([str(runs / "four"), str(runs / "two")], others=True, device="cpu")


@pytest.fixture(scope="module")
def address(studio):
    page, address = start(studio)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    page = Page(browser, address)
    yield page
    assert [x for x in browser.get_log("browser") if x["level"] in ("SEVERE", "WARNING")] == []
    assert {x for x in page.requests() if not x.startswith(address)} == set()  # nothing leaves this machine


def expected(studio, number=0, **request):
    return studio.draw(studio.names[number], **{"class_label": 0, "seed": 0, "teacher_steps": 24} | request)


def test_it_draws_and_goes_through_the_steps(page, studio):
    page.draw()
    drawing = expected(studio)
    for drawn in drawing.samplers:
        assert np.array_equal(page.pixels(drawn.name), np.asarray(enlarged(drawn.pictures[-1])))
    assert page.text("#student-caption").startswith("4 evaluations, ")
    assert page.text("#teacher-caption").startswith("48 evaluations, ")
    link = page.one("#download").find_element("xpath", "ancestor-or-self::*[1]")
    assert np.array_equal(page.fetched(link_of(page, link)), np.asarray(drawing.student.pictures[-1]))
    page.one("#step input[type=range]").send_keys("\ue012")  # arrow to the left
    page.until(lambda: "step 3 of 4" in page.text("#student-caption"))
    assert "step 18 of 24" in page.text("#teacher-caption")
    page.until(lambda: np.array_equal(page.pixels("student"), np.asarray(enlarged(drawing.student.pictures[2]))))
    assert not np.array_equal(drawing.student.pictures[2], drawing.student.pictures[3])


def link_of(page, button) -> str:
    return page.browser.execute_script(
        "return (arguments[0].closest('a') ?? arguments[0].querySelector('a')).href", button
    )
