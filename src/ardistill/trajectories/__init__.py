"""Trajectories of the teacher's ODE: recorded, looked after, read, or made when they are needed."""

from ardistill.trajectories.record import OnlineTrajectories as OnlineTrajectories
from ardistill.trajectories.record import TrajectoryDataset as TrajectoryDataset
from ardistill.trajectories.record import record as record

__all__ = ["OnlineTrajectories", "TrajectoryDataset", "record"]
