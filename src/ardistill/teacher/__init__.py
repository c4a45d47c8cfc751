"""The teacher: a frozen diffusion transformer, its guidance and the ODE that it defines."""

from ardistill.teacher.companions import Companions as Companions
from ardistill.teacher.experts import part_to_start_from as part_to_start_from
from ardistill.teacher.experts import start_from as start_from
from ardistill.teacher.identity import Identity as Identity
from ardistill.teacher.identity import check_same_teacher as check_same_teacher
from ardistill.teacher.loading import read_transformer_config as read_transformer_config
from ardistill.teacher.ode import Trajectory as Trajectory
from ardistill.teacher.padding import pad_tokens as pad_tokens
from ardistill.teacher.pipeline import load_trainable as load_trainable
from ardistill.teacher.recorded import load_recorded_teacher as load_recorded_teacher
from ardistill.teacher.schedule import knots_from_scheduler as knots_from_scheduler
from ardistill.teacher.schedule import select_knots as select_knots
from ardistill.teacher.seeding import seeded_generator as seeded_generator
from ardistill.teacher.sizes import pixel_size as pixel_size
from ardistill.teacher.source import ZOO as ZOO
from ardistill.teacher.source import find_source as find_source
from ardistill.teacher.source import hub_id as hub_id
from ardistill.teacher.source import public_name as public_name
from ardistill.teacher.source import split_name as split_name
from ardistill.teacher.stock import StockDrawing as StockDrawing
from ardistill.teacher.stock import call_parameters as call_parameters
from ardistill.teacher.stock import given_times as given_times
from ardistill.teacher.stock import stock_drawing as stock_drawing
from ardistill.teacher.stock import stock_knots as stock_knots
from ardistill.teacher.teacher import Teacher as Teacher
from ardistill.teacher.unread import unread_files as unread_files
