"""Chromium without a window, driven by selenium, and what the tests ask of a page."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync window-size=1280,1400"
)


def found(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser whose profile and downloads are in a new folder; the test is skipped where there is none, not in CI."""
    chromium, driver = found("chromium", "chromium-browser", "google-chrome"), found("chromedriver")
    if chromium is None or driver is None:
        reason = "this test needs Chromium and its driver: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS.split(), f"user-data-dir={folder / 'profile'}"]:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Page:
    """A page in a browser.

    Args:
        browser: Shows it.
        address: Of the page.
    """

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser, self.address = browser, address
        browser.get(address)
        self.one("#draw")

    def until(self, true: Callable[[], Any], what: str = "") -> Any:
        """What a function returns as soon as it is true."""
        return WebDriverWait(self.browser, 60, 0.05).until(lambda _: true(), what)

    def one(self, selector: str) -> Any:
        """The first element of this CSS selector, once it is there."""
        return self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector), selector)[0]

    def text(self, selector: str) -> str:
        """The text of the element that is there now; empty if there is none."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.browser.execute_script(script, selector)

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def write(self, selector: str, text: str) -> None:
        """Replace what is in a field."""
        field = self.one(selector)
        field.send_keys("\ue009" + "a" + "\ue000")  # control and a
        field.send_keys(text)

    def source(self, name: str) -> str:
        """Address of the picture in the element of this id; empty if it shows none."""
        script = "return document.querySelector(`#${arguments[0]} img`)?.src ?? ''"
        return self.browser.execute_script(script, name)

    def pixels(self, name: str) -> np.ndarray:
        """The picture in the element of this id, as its server sends it."""
        with urllib.request.urlopen(self.source(name)) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())))

    def draw(self, selector: str = "#draw") -> None:
        """Click Draw, and wait until all of the new drawing is shown."""
        before = self.source("steps")
        self.click(selector)
        self.until(lambda: self.source("steps") not in ("", before), "a drawing")

    def error(self) -> str:
        """Text of the error that the page shows, which is closed."""
        text = self.until(lambda: self.text(".toast-body"), "an error")
        self.click(".toast-close")
        self.until(lambda: not self.text(".toast-body"), "an error closed")
        return text

    def requests(self) -> set[str]:
        """Addresses of all requests since the last call, without those of the browser's own pages."""
        events = [json.loads(x["message"])["message"] for x in self.browser.get_log("performance")]
        sent = {x["params"]["request"]["url"] for x in events if x["method"] == "Network.requestWillBeSent"}
        return {x for x in sent if not x.startswith(("data:", "blob:", "chrome:", "chrome-untrusted:"))}
