"""A page to try students on: an image by a student, its teacher and the teacher's solver, from the same noise.

Gradio (the extra ``demo``) is imported when a page or a Space is made.
"""

from ardistill.demo.demo import demo as demo
from ardistill.demo.drawing import Drawing as Drawing
from ardistill.demo.drawing import Drawn as Drawn
from ardistill.demo.drawing import draw as draw
from ardistill.demo.space import write_space as write_space
from ardistill.demo.studio import EMBEDDED as EMBEDDED

__all__ = ["EMBEDDED", "Drawing", "Drawn", "demo", "draw", "write_space"]
