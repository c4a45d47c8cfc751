"""What users of diffusers do with a pipeline out of habit works with an export, too, on every device."""

import os
import shutil

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FirstBlockCacheConfig,
    FluxTransformer2DModel,
    PyramidAttentionBroadcastConfig,
)
from peft import LoraConfig, get_peft_model_state_dict
from pretend_device import PretendDevice
from safetensors.torch import load_file, save_file
from whole import CALLS, FULL, MORE, control, draw, near, opened, same_as_stock

pytestmark = pytest.mark.slow


# On a second device

OFFLOADS = {
    "moved": lambda pipeline: pipeline.to("pretend"),
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(device="pretend"),
    "sequential": lambda pipeline: pipeline.enable_sequential_cpu_offload(device="pretend"),
}


@pytest.mark.parametrize("way", OFFLOADS)
@pytest.mark.parametrize("name,kind", [*((name, "teacher") for name in CALLS), *MORE])
def test_case_09_on_another_device_the_image_is_the_same(exported, name, kind, way):
    pipeline = (control if kind == "teacher" else opened)(exported(name, kind))
    expected = draw(pipeline, name)
    with PretendDevice():
        OFFLOADS[way](pipeline)
        for _ in range(2):
            images = draw(pipeline, name)
            assert images.device.type == "pretend" and near(images.cpu(), expected)
        there = {parameter.device.type for parameter in pipeline.transformer.parameters()}
        assert there == {"moved": {"pretend"}, "model": {"cpu"}, "sequential": {"meta"}}[way]


# Options of a call


@pytest.mark.parametrize("options", [{"guidance_scale": 0.0}, {"negative_prompt": ""}, {"negative_prompt": ["", " "]}])
@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_what_says_that_there_is_no_guidance_is_no_error(exported, name, options):
    pipeline = opened(exported(name, "history"))
    assert torch.equal(draw(pipeline, name, **options), draw(pipeline, name))


def test_an_empty_negative_prompt_is_not_evaluated(exported):
    """Flux evaluates it beside the prompt where ``true_cfg_scale`` says so; a student is evaluated once a step."""
    pipeline = opened(exported("flux", "history"))
    expected = draw(pipeline, "flux")
    assert torch.equal(draw(pipeline, "flux", negative_prompt="", true_cfg_scale=4.0), expected)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_callback_may_ask_the_scheduler_where_it_is(exported, name):
    for pipeline in (control(exported(name, "teacher")), opened(exported(name, "history"))):
        seen = []

        def ask(pipe, step, timestep, tensors, seen=seen):
            scheduler = pipe.scheduler
            seen.append((scheduler.step_index, scheduler.num_inference_steps, float(scheduler.timesteps[step])))
            assert seen[-1][2] == float(timestep)
            return tensors

        draw(pipeline, name, callback_on_step_end=ask)
        assert [x[:2] for x in seen] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_was_broken_off_leaves_nothing_behind(exported, name, error):
    pipeline = opened(exported(name, "history"))
    expected, before, calls = draw(pipeline, name), dict(vars(pipeline)), []

    def break_off(module, args):
        calls.append(1)
        if len(calls) == 2:
            raise error("broken off")

    hook = pipeline.transformer.register_forward_pre_hook(break_off)
    with pytest.raises(error, match="broken off"):
        draw(pipeline, name)
    hook.remove()
    assert {*vars(pipeline)} == {*before} and torch.equal(draw(pipeline, name), expected)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_callback_may_draw_another_image(exported, name):
    pipeline = opened(exported(name, "history"))
    expected, others = [draw(pipeline, name, seed) for seed in (0, 1)], []

    def draw_another(pipe, step, timestep, tensors):
        others.extend(draw(each, name, 1) for each in (pipe, pipeline))
        return tensors

    assert torch.equal(draw(pipeline, name, callback_on_step_end=draw_another), expected[0])
    assert len(others) == 4 and all(torch.equal(other, expected[1]) for other in others)


# Changes of the transformer


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("kind", ["plain", "history", "heads", "guided"])
def test_loras_are_loaded_fused_and_unloaded(exported, tmp_path, name, kind):
    stock = control(exported(name, "teacher"))
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    stock.transformer.add_adapter(lora)
    type(stock).save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(stock.transformer))
    pipeline = opened(exported(name, kind))
    before = draw(pipeline, name)
    pipeline.load_lora_weights(tmp_path, adapter_name="a")
    adapted = draw(pipeline, name)
    assert not torch.allclose(adapted, before, atol=1e-3)
    pipeline.set_adapters(["a"], [0.0])
    assert near(draw(pipeline, name), before)
    pipeline.set_adapters(["a"], [1.0])
    pipeline.fuse_lora()
    assert near(draw(pipeline, name), adapted)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert near(draw(pipeline, name), before)
    pipeline.load_lora_weights(tmp_path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    assert near(draw(opened(tmp_path / "fused"), name), adapted)


@pytest.mark.parametrize("name,kind", FULL)
def test_projections_fused_and_weights_stored_in_8_bits(exported, name, kind):
    same_as_stock(exported, name, kind, lambda p: p.transformer.fuse_qkv_projections())
    f8, f32 = torch.float8_e4m3fn, torch.float32
    same_as_stock(exported, name, kind, lambda p: p.transformer.enable_layerwise_casting(f8, f32), tolerance=0.2)


@pytest.mark.parametrize("by_diffusers", [False, True])
def test_blocks_compiled_by_the_pipeline_or_by_diffusers(exported, by_diffusers):
    pipeline = opened(exported("flux", "history"))
    expected = draw(pipeline, "flux")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        if not by_diffusers:
            pipeline.compile(backend="eager", fullgraph=True)
        else:  # by the names of its blocks' classes, which a history keeps
            pipeline.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        assert torch.equal(draw(pipeline, "flux"), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


def test_another_models_attention_backend_is_its_own(exported):
    """diffusers makes the backend that one model is given the default of the whole process."""
    pipeline, other = opened(exported("flux", "history")), control(exported("flux", "teacher"))
    expected = draw(pipeline, "flux")
    try:
        other.transformer.set_attention_backend("flex")
        again = opened(exported("flux", "history"))
        assert near(draw(pipeline, "flux"), expected) and near(draw(again, "flux"), expected)
        again.transformer.set_attention_backend("flex")
        with pytest.raises(ValueError, match="set_attention_backend\\('native'\\)"):
            draw(again, "flux")
    finally:
        again.transformer.set_attention_backend("native")
    assert near(draw(again, "flux"), expected)


CACHES = {
    "blocks": FirstBlockCacheConfig(threshold=1e9),
    "attention": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        current_timestep_callback=lambda: 500,
        spatial_attention_block_identifiers=["transformer_blocks"],
    ),
}


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_skips_layers_with_history_is_refused(exported, cache):
    """Without history the same cache is the user's own choice, as in the stock pipeline."""
    for kind in ("teacher", "plain", "history"):
        pipeline = (control if kind == "teacher" else opened)(exported("flux", kind))
        expected = draw(pipeline, "flux")
        if kind == "history":  # a cache of blocks does not know their class; one of attention is noticed in the call
            with pytest.raises(ValueError, match="not registered" if cache == "blocks" else "disable_cache"):
                pipeline.transformer.enable_cache(CACHES[cache])
                draw(pipeline, "flux")
        else:
            pipeline.transformer.enable_cache(CACHES[cache])
            assert not torch.allclose(draw(pipeline, "flux"), expected, atol=1e-3)
        pipeline.transformer.disable_cache()
        assert near(draw(pipeline, "flux"), expected)


# On the Hub


def _cached(exports, cache, branch="main", change=None):
    """Put an export of Flux into a cache of the Hub as a download does: files by links, the revision in a file."""
    revision = {"main": "a", "later": "b"}[branch] * 40
    root = cache / "models--someone--student"
    snapshot = root / "snapshots" / revision
    shutil.copytree(exports("flux", "history"), root / "blobs" / revision)
    if change is not None:
        change(root / "blobs" / revision)
    for path in (root / "blobs" / revision).rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(root / "blobs" / revision)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / branch).write_text(revision)


def _other_weights(folder):
    """As another training run leaves them: every weight, and a gate of 5 instead of 0.5."""
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    changed = {key: x * 10 if "history_gate" in key else x * 1.1 for key, x in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})


def test_case_11_a_transformer_of_a_hub_id_gets_the_weights_of_its_own_revision(exported, tmp_path):
    """A transformer remembers its id, not its revision or its cache; the quantised ones are loaded so."""
    _cached(exported, tmp_path)
    _cached(exported, tmp_path, "later", _other_weights)
    for branch in ("main", "later"):
        options = {"cache_dir": tmp_path, "revision": branch, "local_files_only": True}
        pipeline = opened("someone/student", **options)
        expected = draw(pipeline, "flux")
        transformer = FluxTransformer2DModel.from_pretrained("someone/student", subfolder="transformer", **options)
        given = opened("someone/student", transformer=transformer, **options)
        assert given.transformer.transformer_blocks[0].attn.history_gate == (0.5 if branch == "main" else 5.0)
        assert near(draw(given, "flux"), expected)
        pipeline.save_pretrained(tmp_path / branch)
        assert near(draw(opened(tmp_path / branch), "flux"), expected)
    other = {"cache_dir": tmp_path, "revision": "main", "local_files_only": True}
    with pytest.raises(ValueError, match="the export's folder"):
        DiffusionPipeline.from_pretrained(
            "someone/student",
            trust_remote_code=True,
            **other,
            transformer=FluxTransformer2DModel.from_pretrained(
                "someone/student", subfolder="transformer", **(other | {"revision": "later"})
            ),
        )
