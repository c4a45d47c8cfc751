"""SkyReels-V2 (Chen et al. 2025, arXiv:2504.13074): Wan's architecture; its text-to-video models, one time per video.

A model for diffusion forcing that is conditioned on frames per second (``inject_sample_info``) is refused by its own
class where this is left out, as its pipeline for text to video does.
"""

from dataclasses import replace

from ardistill.families import wan

FAMILY = replace(wan.FAMILY, pipeline="SkyReelsV2Pipeline", default_size=68)
