"""A student as others load it: a diffusers pipeline folder with its own module, card and picture."""

from ardistill.publishing.export import export as export
from ardistill.publishing.load import load as load

__all__ = ["export", "load"]
