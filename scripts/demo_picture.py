"""Take the picture of the page for the documentation: python scripts/demo_picture.py STUDENT [CLASS].

Needs Chromium and its driver, as the test of the page does. Writes docs/demo.png.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "demo"))

from browser import Page, started  # noqa: E402

from ardistill.demo.demo import start  # noqa: E402
from ardistill.demo.studio import Studio  # noqa: E402


def main(student: str, number: str = "0") -> None:
    served, address = start(Studio([student], others=True))
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as browser:
        page = Page(browser, address)
        page.click("#class input")
        page.click(f"#class li:nth-of-type({int(number) + 1})")
        page.draw()
        browser.set_window_size(1280, 1330)
        picture = Path(folder) / "demo.png"
        browser.execute_script("document.activeElement.blur()")
        browser.save_screenshot(picture)
        # A palette of 128 colours: the page has few, and the file stays small.
        Image.open(picture).convert("RGB").quantize(128).save(ROOT / "docs" / "demo.png", optimize=True)
    served.close(verbose=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
