"""Trajectories of the teacher's ODE: recorded, maintained, read, or solved when they are needed."""

from ardistill.trajectories.dataset import TrajectoryDataset as TrajectoryDataset
from ardistill.trajectories.info import describe as describe
from ardistill.trajectories.info import info as info
from ardistill.trajectories.knots import check_conditioning as check_conditioning
from ardistill.trajectories.knots import condition_uniformly as condition_uniformly
from ardistill.trajectories.knots import knot_indices as knot_indices
from ardistill.trajectories.knots import nested_indices as nested_indices
from ardistill.trajectories.knots import same_states as same_states
from ardistill.trajectories.knots import select_knots as select_knots
from ardistill.trajectories.knots import steps_or_knots as steps_or_knots
from ardistill.trajectories.manifest import Manifest as Manifest
from ardistill.trajectories.online import OnlineTrajectories as OnlineTrajectories
from ardistill.trajectories.parquet import export_parquet as export_parquet
from ardistill.trajectories.prompts import COLUMNS as COLUMNS
from ardistill.trajectories.prompts import checked_texts as checked_texts
from ardistill.trajectories.prompts import choose_column as choose_column
from ardistill.trajectories.prompts import column_of as column_of
from ardistill.trajectories.prompts import distinct_prompts as distinct_prompts
from ardistill.trajectories.prompts import load_dataset as load_dataset
from ardistill.trajectories.prompts import load_prompts as load_prompts
from ardistill.trajectories.prompts import read_rows as read_rows
from ardistill.trajectories.record import record as record
from ardistill.trajectories.repair import repair as repair
from ardistill.trajectories.stream import ShardSampler as ShardSampler
from ardistill.trajectories.verify import describe_inspection as describe_inspection
from ardistill.trajectories.verify import verify as verify
