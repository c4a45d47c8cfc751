"""A student as others load it: a diffusers pipeline folder with its own module, card and picture."""

from ardistill.publishing.export import export as export
from ardistill.publishing.load import load as load
from ardistill.publishing.module import pipeline_source as pipeline_source
from ardistill.publishing.stock import call_of as call_of
from ardistill.publishing.stock import stock_form as stock_form

__all__ = ["call_of", "export", "load", "pipeline_source", "stock_form"]
