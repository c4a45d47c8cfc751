"""``ardistill`` and ``python -m ardistill``, as ``accelerate launch -m ardistill`` calls it."""

import sys

from ardistill import errors


def main() -> None:
    """Run the command line; what goes wrong while it is imported is one line, too."""
    errors.ready_process()
    again = "nothing was begun, run the same command again"
    with errors.one_line(lambda: "ardistill", lambda: again, debug="--debug" in sys.argv):
        from ardistill.cli import main as run

        run()


if __name__ == "__main__":
    main()
