"""``python -m ardistill``, as ``accelerate launch -m ardistill`` calls it."""

from ardistill.cli import main

if __name__ == "__main__":
    main()
