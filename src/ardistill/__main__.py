"""Entry point of ``ardistill``, ``python -m ardistill`` and ``accelerate launch -m ardistill``."""

import sys

from ardistill import errors


def main() -> None:
    """Run the command line; an error during its import is one line, too."""
    errors.ready_process()
    again = "nothing was started, run the same command again"
    with errors.one_line(lambda: "ardistill", lambda: again, debug="--debug" in sys.argv):
        from ardistill.cli import main as run

        run()


if __name__ == "__main__":
    main()
