"""Serve the page: the command ``demo`` in Python."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from ardistill.demo.studio import EMBEDDED, Studio
from ardistill.devices import Device
from ardistill.errors import say

LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Hosts that only this machine reaches."""


def demo(
    students: Sequence[str] = (EMBEDDED,),
    *,
    teacher: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    browser: bool = False,
    device: Device = None,
    mixed_precision: str = "auto",
) -> str:
    """Serve a page that draws with students beside their teachers, until Ctrl-C.

    Args:
        students: Runs, checkpoints, exports or Hub ids to choose from; the first is chosen at first. Where only this
            machine reaches the page, it takes others, too.
        teacher: Where the students' teacher is now; what each student recorded if not given.
        host: Address to serve at; 0.0.0.0 for all of this machine's.
        port: Port to serve at; the first free one from 7860 on if not given.
        share: Serve at a public address of Gradio, too.
        browser: Open the page in this machine's browser.
        device: Where to draw; the best device there is if not given.
        mixed_precision: What to compute in, as for ``ardistill.student.sample``.

    Returns:
        The address that the page had.

    Raises:
        ValueError: There is no such student, or the port is invalid or used.
    """
    others = host in LOCAL and not share
    studio = Studio(students, teacher=teacher, others=others, device=device, mixed_precision=mixed_precision)
    page, address = start(studio, host=host, port=port, share=share, browser=browser)
    say(f"the page is at {address} (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)
    return address


def start(
    studio: Studio, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False, browser: bool = False
) -> tuple[Any, str]:
    """Start to serve the page of a studio, in threads.

    Args:
        studio: Draws.
        host: This and the following options are those of ``demo``.
        port: See above.
        share: See above.
        browser: See above.

    Returns:
        The page, a ``gradio.Blocks``, whose ``close`` ends it, and its address.

    Raises:
        ValueError: The first student cannot be loaded, or the port is invalid or used.
    """
    from ardistill.demo.page import LOOKS, make_page

    if port is not None and not 1 <= port < 2**16:
        raise ValueError(f"expected a port of 1 to 65535, got {port}")
    page = make_page(studio)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            **LOOKS,
        )
    except OSError as error:
        wanted = f"{host}:{port}" if port else f"{host}, ports 7860 to 7959"
        raise ValueError(
            f"the page cannot be served at {wanted} ({error}); name a free --port or another --host"
        ) from error
    return page, page.share_url or page.local_url or ""
