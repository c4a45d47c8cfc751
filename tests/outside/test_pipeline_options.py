"""Every family's exported pipeline takes the options of its stock class, or refuses them in one line."""

import copy
import inspect

import numpy as np
import pytest
import torch
from pretend_device import PretendDevice
from whole import ALL_CALLS, CALLS, control, draw, near, opened

from ardistill.publishing import load

pytestmark = pytest.mark.slow
WITHOUT_CALLBACK = ("dit", "pixart")
FURTHER = [name for name in ALL_CALLS if name not in CALLS]
"""Families that test_whole_pipeline.py and test_pipeline_habits.py do not have."""
WAIT_FOR_THE_DEVICE = ("hunyuandit", "auraflow")
"""Their stock pipelines read the timestep from the device, which the pretended one does not offer."""


@pytest.fixture(scope="module")
def drawn(exported):
    """A family's exported pipeline and its images; each is loaded once."""
    made = {}

    def of(name):
        if name not in made:
            pipeline = opened(exported(name, "history"))
            made[name] = pipeline, draw(pipeline, name)
        return made[name]

    return of


def _refused(pipeline, name, **options):
    (option,) = options
    with pytest.raises(ValueError, match=rf"unexpected keyword argument '{option}'; leave it out") as raised:
        draw(pipeline, name, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_output_types(drawn, exported, name):
    pipeline, expected = drawn(name)
    arrays = draw(pipeline, name, output_type="np")
    assert np.array_equal(arrays, expected.movedim(-3, -1).numpy())
    pictures = draw(pipeline, name, output_type="pil")
    frames = [x for y in pictures for x in y] if name == "wan" else pictures
    assert np.array_equal(np.stack(frames), (arrays * 255).round().astype("uint8").reshape(-1, *arrays.shape[-3:]))
    assert torch.equal(pipeline(**_given(name), return_dict=False)[0], expected)
    latents, stock = (draw(x, name, output_type="latent") for x in (pipeline, control(exported(name, "teacher"))))
    assert type(latents) is type(stock) and latents.shape == stock.shape and latents.dtype == stock.dtype


def _given(name):
    return ALL_CALLS[name] | {"output_type": "pt", "generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("name", ALL_CALLS)
def test_a_generator_per_image(drawn, name):
    pipeline, expected = drawn(name)
    images = draw(pipeline, name, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)])
    condition = "class_labels" if name == "dit" else "prompt"
    for seed, image in enumerate(images):
        alone = draw(pipeline, name, seed, **{condition: [ALL_CALLS[name][condition][seed]]})
        assert torch.allclose(image, alone[0], atol=1e-4)  # CogView4's prompts are padded to the longest of a call
    assert not torch.allclose(images[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_images_per_prompt(drawn, name):
    """Of prompts of equal length: for Qwen-Image, HunyuanDiT and Lumina2 diffusers repeats masks in another order than
    prompts."""
    pipeline = drawn(name)[0]
    option = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    if name == "dit":
        _refused(pipeline, name, num_images_per_prompt=2)
        return
    images = draw(pipeline, name, prompt=["a red cat", "a red dog"], **{option: 2})
    assert near(images, draw(pipeline, name, prompt=["a red cat"] * 2 + ["a red dog"] * 2))


@pytest.mark.parametrize("name", ALL_CALLS)
def test_prompts_encoded_before(drawn, name):
    pipeline, expected = drawn(name)
    if name == "dit":
        _refused(pipeline, name, prompt_embeds=torch.zeros(2, 4, 4))
        return
    assert near(draw(pipeline, name, prompt=None, **_encoded(pipeline, name)), expected)


def _encoded(pipeline, name):
    """The options of a call that take the place of ``prompt``."""
    further = {"sd3": {"prompt_2": None, "prompt_3": None}, "flux": {"prompt_2": None}}.get(name, {})
    known = inspect.signature(pipeline.encode_prompt).parameters
    fixed = {"do_classifier_free_guidance": False, "clean_caption": False, "max_sequence_length": 512}
    fixed = {key: x for key, x in fixed.items() if key in known and (key != "max_sequence_length" or name == "wan")}
    given = {"prompt": ALL_CALLS[name]["prompt"], **further, **fixed}
    found = pipeline.encode_prompt(**given)
    embeds, rest = found if name == "flux2" else (found[0], found[1:])
    if name in ("sd3", "flux"):
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": rest[1] if name == "sd3" else rest[0]}
    if name == "qwen-image":
        return {"prompt_embeds": embeds, "prompt_embeds_mask": rest[0]}
    if name == "hunyuandit":
        second = pipeline.encode_prompt(**given, text_encoder_index=1)
        masks = {"prompt_attention_mask": found[2], "prompt_attention_mask_2": second[2]}
        return {"prompt_embeds": embeds, "prompt_embeds_2": second[0]} | masks
    masked = "prompt_attention_mask" in inspect.signature(pipeline.__call__).parameters
    return {"prompt_embeds": embeds} | ({"prompt_attention_mask": rest[0]} if masked else {})


@pytest.mark.parametrize("name", ALL_CALLS)
def test_several_sizes_one_after_the_other(drawn, name):
    pipeline, expected = drawn(name)
    if name == "dit":
        _refused(pipeline, name, height=32)
        return
    side = ALL_CALLS[name].get("height", 16)
    for height, width in ((side, 2 * side), (2 * side, side)):
        images = draw(pipeline, name, height=height, width=width)
        rows, columns = expected.shape[-2:]
        assert images.shape[-2:] == (rows * height // side, columns * width // side) and images.isfinite().all()
    assert torch.equal(draw(pipeline, name), expected)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_callbacks(drawn, name):
    pipeline, expected = drawn(name)
    if name in WITHOUT_CALLBACK:
        _refused(pipeline, name, callback_on_step_end=lambda pipe, step, timestep, tensors: tensors)
        return
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((step, {*tensors}, tensors["latents"].shape))
        return tensors

    asked = {"callback_on_step_end_tensor_inputs": pipeline._callback_tensor_inputs}
    assert torch.equal(draw(pipeline, name, callback_on_step_end=watch, **asked), expected)
    assert [x[:2] for x in seen] == [(step, {*pipeline._callback_tensor_inputs}) for step in (0, 1)]

    def clear(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    first, second = (draw(pipeline, name, seed, callback_on_step_end=clear) for seed in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", FURTHER)
def test_other_precisions(exported, drawn, name):
    pipeline, expected = opened(exported(name, "history")), drawn(name)[1]
    for dtype in (torch.float16, torch.bfloat16):
        images = draw(pipeline.to(dtype), name)
        assert images.isfinite().all() and (images.float() - expected).abs().mean() < 0.03
    pipeline.transformer.float()  # the VAE and the text encoders stay in bfloat16
    assert (draw(pipeline, name).float() - expected).abs().mean() < 0.03


@pytest.mark.parametrize("name", FURTHER)
def test_offloading_one_part_after_the_other(exported, drawn, name):
    pipeline, expected = opened(exported(name, "history")), drawn(name)[1]
    if name in WAIT_FOR_THE_DEVICE:
        pipeline.enable_model_cpu_offload(device="cpu")
        assert near(draw(pipeline, name), expected)
        return
    with PretendDevice():
        pipeline.enable_model_cpu_offload(device="pretend")
        images = draw(pipeline, name)
        assert images.device.type == "pretend" and near(images.cpu(), expected)
        assert {parameter.device.type for parameter in pipeline.transformer.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", FURTHER)
def test_copies_and_saved_folders(drawn, tmp_path, name):
    pipeline, expected = drawn(name)
    assert torch.equal(draw(copy.deepcopy(pipeline), name), expected)
    pipeline.save_pretrained(tmp_path / "saved")
    assert near(draw(opened(tmp_path / "saved"), name), expected)
    ours = load(tmp_path / "saved")
    ours.set_progress_bar_config(disable=True)
    assert near(draw(ours, name), expected)
