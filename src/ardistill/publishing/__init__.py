"""A student as others load it: a diffusers pipeline folder with its module, card and picture, here and on the Hub."""

from ardistill.publishing.card import example_of as example_of
from ardistill.publishing.export import export as export
from ardistill.publishing.export import is_export_of as is_export_of
from ardistill.publishing.hub import check_push as check_push
from ardistill.publishing.hub import push as push
from ardistill.publishing.load import load as load
from ardistill.publishing.module import pipeline_source as pipeline_source
from ardistill.publishing.push_trajectories import push_trajectories as push_trajectories
from ardistill.publishing.stock import call_of as call_of
from ardistill.publishing.stock import stock_form as stock_form

__all__ = [
    "call_of",
    "check_push",
    "example_of",
    "export",
    "is_export_of",
    "load",
    "pipeline_source",
    "push",
    "push_trajectories",
    "stock_form",
]
