"""The page in a real browser: it loads, draws, goes through the steps, changes its student, and shows errors."""

import numpy as np
import pytest
from browser import Page, started
from PIL import Image
from selenium.webdriver.common.keys import Keys

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
def folder(tmp_path_factory):
    """What the browser writes."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(folder):
    with started(folder) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    page = Page(browser, address)
    yield page
    assert [x for x in browser.get_log("browser") if x["level"] in ("SEVERE", "WARNING")] == []
    assert {x for x in page.requests() if not x.startswith(address)} == set()  # nothing leaves this machine


def expected(studio, number=0, **request):
    return studio.draw(studio.names[number], **{"class_label": 0, "seed": 0, "teacher_steps": 24} | request)


def shows(page, name, picture) -> bool:
    return np.array_equal(page.pixels(name), np.asarray(enlarged(picture)))


def test_it_draws_and_goes_through_the_steps(page, studio, folder):
    page.draw()
    drawing = expected(studio)
    assert all(shows(page, drawn.name, drawn.pictures[-1]) for drawn in drawing.samplers)
    assert page.text("#student-caption").startswith("4 evaluations, ")
    assert page.text("#teacher-caption").startswith("48 evaluations, ")
    page.one("#step input[type=range]").send_keys(Keys.ARROW_LEFT)
    page.until(lambda: "step 3 of 4" in page.text("#student-caption"))
    assert "step 18 of 24" in page.text("#teacher-caption")
    page.until(lambda: shows(page, "student", drawing.student.pictures[2]))
    assert not np.array_equal(drawing.student.pictures[2], drawing.student.pictures[3])
    page.click("#download")
    file = folder / "downloads" / "student.png"
    page.until(file.exists)
    assert np.array_equal(Image.open(file).convert("RGB"), drawing.student.pictures[-1])


def test_other_students_are_chosen_from_the_list_and_by_name(page, studio, runs):
    page.click("#students input")
    page.click("#students li:nth-of-type(2)")
    page.until(lambda: page.text("#about").startswith("2 steps, history in 2 layers"))
    page.draw()
    drawing = expected(studio, 1)
    assert shows(page, "student", drawing.student.pictures[-1])
    assert page.one("#step input[type=range]").get_attribute("max") == "2"
    page.write("#other textarea", f"{runs}/four/checkpoints/step-00000002{Keys.ENTER}")
    page.until(lambda: page.text("#about").startswith("4 steps"))
    page.until(lambda: page.source("student") == "")  # what another student drew is gone
    page.write("#seed input", "7")
    page.draw()
    first = studio.draw(f"{runs}/four/checkpoints/step-00000002", class_label=0, seed=7)
    assert shows(page, "student", first.student.pictures[-1])


def test_errors_are_one_line(page, runs):
    page.write("#seed input", "-1")
    page.click("#draw")
    assert "expected a whole number from 0 as the seed" in page.error()
    page.write("#other textarea", f"{runs}/<b>nothing</b>{Keys.ENTER}")
    error = page.error()
    assert "found none" in error and "<b>nothing</b>" in error and "Traceback" not in error
    page.write("#seed input", "0")
    page.draw()  # the page goes on


def test_two_visitors_do_not_mix(page, studio):
    page.draw()
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    other = Page(page.browser, page.address)
    other.draw("#new")
    seed = int(other.one("#seed input").get_property("value"))
    other.until(lambda: shows(other, "student", expected(studio, seed=seed).student.pictures[-1]))
    page.browser.close()
    page.browser.switch_to.window(first)
    page.one("#step input[type=range]").send_keys(Keys.HOME)
    page.until(lambda: "step 1 of 4" in page.text("#student-caption"))
    page.until(lambda: shows(page, "student", expected(studio).student.pictures[0]))
