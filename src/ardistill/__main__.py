"""``ardistill`` and ``python -m ardistill``, as ``accelerate launch -m ardistill`` calls it."""

from ardistill import errors


def main() -> None:
    """Run the command line; what goes wrong while it is imported is one line, too."""
    with errors.one_line(lambda: "ardistill", lambda: "nothing was begun, run the same command again"):
        from ardistill.cli import main as run

        run()


if __name__ == "__main__":
    main()
