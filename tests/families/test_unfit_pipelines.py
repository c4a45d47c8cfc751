"""Which pipeline classes of diffusers can be teachers."""

import diffusers
import pytest

from ardistill.families import unfit_pipeline

PUBLISHED = ("DiTPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "Flux2KleinPipeline", "QwenImagePipeline")


def test_pipelines_of_noise_and_prompts_are_fit():
    for name in (*PUBLISHED, "PixArtAlphaPipeline", "Flux2Pipeline", "WanPipeline"):
        assert hasattr(diffusers, name) and unfit_pipeline(name) is None
    assert unfit_pipeline("") is None and unfit_pipeline("APipelineOfAUser") is None


@pytest.mark.parametrize(
    "name,given",
    [
        ("FluxKontextPipeline", "image"),
        ("FluxFillPipeline", "image"),
        ("FluxControlPipeline", "control_image"),
        ("QwenImageEditPlusPipeline", "image"),
        ("WanVideoToVideoPipeline", "video"),
        ("CogVideoXImageToVideoPipeline", "image"),
        ("CogVideoXFunControlPipeline", "control_video"),
        ("HunyuanImageRefinerPipeline", "image"),
    ],
)
def test_pipelines_that_are_given_more_are_refused(name, given):
    assert hasattr(diffusers, name)
    reason = unfit_pipeline(name)
    assert f"its call takes {given}, which recordings do not hold; use a teacher whose model_index.json" in reason
