"""A student as others load it: a diffusers pipeline folder with its module, card and picture, here and on the Hub."""

from ardistill.publishing.export import export as export
from ardistill.publishing.export import is_export_of as is_export_of
from ardistill.publishing.hub import check_push as check_push
from ardistill.publishing.hub import push as push
from ardistill.publishing.load import load as load
from ardistill.publishing.push_trajectories import push_trajectories as push_trajectories

__all__ = ["check_push", "export", "is_export_of", "load", "push", "push_trajectories"]
