"""An exported pipeline is a pipeline like any other: what the stock class supports it supports, with the same image.

Each feature is tried on the teacher's own pipeline first, as the control: where that raises, the export may raise, too.
"""

import copy
import json
import pickle
import shutil
import threading

import accelerate
import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model
from tiny import open_gates
from whole import CALLS, FULL, MORE, TEXT, control, draw, near, opened, same_as_stock

from ardistill.publishing import export, load
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher

pytestmark = pytest.mark.slow

# Case 3


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_case_03_an_export_of_a_bf16_teacher_draws_as_it_is_loaded(exported, tmp_path, name, dtype):
    pipeline = control(exported(name, "teacher"), torch_dtype=dtype)
    pipeline.save_pretrained(tmp_path / "teacher")
    size = {"height": 16, "width": 16} if name == "flux" else {}
    teacher = Teacher.from_pretrained(tmp_path / "teacher", guidance_scale=2.0, **size)
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2)).eval()
    open_gates(student)
    export(student, teacher, tmp_path / "student", picture=__file__)
    expected = draw(opened(exported(name, "history")), name)
    for options in ({}, {"torch_dtype": dtype}, {"torch_dtype": torch.float32}):
        images = draw(opened(tmp_path / "student", **options), name)
        assert images.isfinite().all() and (images.float() - expected).abs().mean() < 0.1
    assert draw(load(tmp_path / "student"), name).isfinite().all()


@pytest.mark.parametrize("name,kind", MORE)
def test_case_03_every_mixture_of_dtypes_draws(exported, name, kind):
    whole = opened(exported(name, kind))
    expected = draw(whole, name)
    bf16, f32 = torch.bfloat16, torch.float32
    found = []
    for options in (
        {"torch_dtype": bf16},
        {"torch_dtype": {"transformer": bf16, "default": f32}},
        {"torch_dtype": {"transformer": f32, "default": bf16}},
    ):
        found.append(draw(opened(exported(name, kind), **options), name))
    with torch.autocast("cpu", bf16):
        found.append(draw(whole, name))
    found.append(draw(whole.to(torch.float16), name))
    for images in found:
        assert (images.float() - expected).abs().mean() < 0.03


@pytest.mark.parametrize("name,shape", [("sd3", (2, 4, 8, 8)), ("pixart", (2, 4, 8, 8)), ("flux", (2, 16, 16))])
def test_case_03_noise_in_float32_is_taken_by_a_bf16_pipeline(exported, name, shape):
    pipeline = opened(exported(name, "history"))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = draw(pipeline, name, latents=noise)
    images = draw(pipeline.to(torch.bfloat16), name, latents=noise)
    assert (images.float() - expected).abs().mean() < 0.03


def test_case_03_the_steps_state_stays_in_float32(exported):
    """What is handed to a bf16 network is rounded; what the next step starts from is not."""
    pipeline = opened(exported("sd3", "plain"), torch_dtype=torch.bfloat16)
    states = []

    def watch(pipe, step, timestep, tensors):
        states.append((pipe.scheduler.state.dtype, tensors["latents"].dtype))
        return tensors

    draw(pipeline, "sd3", callback_on_step_end=watch)
    assert states == [(torch.float32, torch.bfloat16)] * 2


# Case 9


@pytest.mark.parametrize("name,kind", MORE)
def test_case_09_model_offload_keeps_the_image_and_its_hooks(exported, name, kind):
    pipeline = same_as_stock(exported, name, kind, lambda p: p.enable_model_cpu_offload(device="cpu"))
    expected = draw(pipeline, name)
    assert hasattr(pipeline.transformer, "_hf_hook") and len(pipeline._all_hooks) >= 2
    models = {id(hook.model) for hook in pipeline._all_hooks}
    assert id(pipeline.transformer) in models
    pipeline.remove_all_hooks()
    assert not hasattr(pipeline.transformer, "_hf_hook") and torch.equal(draw(pipeline, name), expected)


@pytest.mark.parametrize("name,kind", MORE)
def test_case_09_weights_offloaded_one_by_one(exported, name, kind):
    def offload(pipeline):  # what enable_sequential_cpu_offload does to each part, on a device that is here
        accelerate.cpu_offload(pipeline.transformer, torch.device("cpu"), offload_buffers=False)

    pipeline = same_as_stock(exported, name, kind, offload)
    assert any(parameter.is_meta for parameter in pipeline.transformer.parameters())


@pytest.mark.parametrize("name,kind", FULL)
@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_case_09_group_offload_where_the_stock_class_has_it(exported, name, kind, offload_type):
    cpu, blocks = torch.device("cpu"), 1 if offload_type == "block_level" else None
    options = {"offload_type": offload_type, "num_blocks_per_group": blocks}
    same_as_stock(exported, name, kind, lambda p: p.transformer.enable_group_offload(cpu, cpu, **options))


@pytest.mark.parametrize("name,kind", FULL)
def test_case_09_a_device_map_and_hooks_put_on_before(exported, name, kind):
    folder = exported(name, kind)
    expected = draw(opened(folder), name)
    mapped = opened(folder, device_map="cpu")
    mapped.reset_device_map()
    assert near(draw(mapped, name), expected)
    transformer = getattr(diffusers, type(mapped.transformer).__name__).from_pretrained(folder / "transformer")
    transformer = accelerate.dispatch_model(transformer, {"": "cpu"}, force_hooks=True)
    assert near(draw(opened(folder, transformer=transformer), name), expected)


# Case 10


@pytest.mark.parametrize("name,kind", [("dit", "plain"), ("pixart", "history"), ("flux", "history"), ("sd3", "guided")])
def test_case_10_what_is_compiled_runs(exported, name, kind):
    def compiled(pipeline):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")

    pipeline = same_as_stock(exported, name, kind, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert near(draw(pipeline, name), draw(opened(exported(name, kind)), name))


@pytest.mark.parametrize("way", ["compile", "compile_repeated_blocks"])
def test_case_10_compiled_in_place_and_block_by_block(exported, way):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        for kind in ("history", "plain"):  # graphs of one student are not taken for another's
            pipeline = opened(exported("flux", kind))
            expected = draw(pipeline, "flux")
            getattr(pipeline.transformer, way)(backend="eager", fullgraph=True)
            assert torch.equal(draw(pipeline, "flux"), expected)


@pytest.mark.parametrize("name,kind", FULL)
def test_case_10_a_zeroed_module_changes_the_image(exported, name, kind):
    pipeline = opened(exported(name, kind))
    expected, own = draw(pipeline, name), pipeline.transformer
    for other in (copy.deepcopy(own), type(own).from_config(own.config)):
        for parameter in other.parameters():
            parameter.data.zero_()
        pipeline.transformer = other
        assert not torch.allclose(draw(pipeline, name), expected, atol=1e-3)
    pipeline.transformer = type(own).from_pretrained(exported(name, kind) / "transformer")
    assert near(draw(pipeline, name), expected)
    pipeline.transformer = own
    assert torch.equal(draw(pipeline, name), expected)


@pytest.mark.parametrize("name,kind", [("flux", "history"), ("dit", "plain"), ("sd3", "guided")])
def test_case_10_adapters_of_peft_run(exported, name, kind):
    def adapted(pipeline):
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"])
        pipeline.transformer = get_peft_model(pipeline.transformer, config)

    pipeline = same_as_stock(exported, name, kind, adapted)
    before = draw(pipeline, name)
    for key, parameter in pipeline.transformer.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(draw(pipeline, name), before, atol=1e-3)


def test_case_10_parts_may_be_loaded_apart(exported):
    """Prompts encoded by one pipeline without a transformer, drawn by another without text encoders."""
    folder = exported("sd3", "history")
    whole = opened(folder)
    encoder = opened(folder, transformer=None, vae=None)
    embedded = encoder.encode_prompt(TEXT["prompt"], None, None)
    given = {"prompt": None, "prompt_embeds": embedded[0], "pooled_prompt_embeds": embedded[2]}
    absent = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    assert near(draw(opened(folder, **absent), "sd3", **given), draw(whole, "sd3"))
    encoder.transformer = whole.transformer
    assert near(draw(encoder, "sd3", output_type="latent", height=8, width=8), draw(whole, "sd3", output_type="latent"))


# Case 11


@pytest.mark.parametrize("name,kind", MORE)
def test_case_11_a_quantised_transformer_draws(exported, name, kind):
    def quantised(pipeline):
        linear = {torch.nn.Linear}
        pipeline.transformer = torch.ao.quantization.quantize_dynamic(pipeline.transformer, linear, torch.qint8)

    same_as_stock(exported, name, kind, quantised, tolerance=0.2)


@pytest.mark.parametrize("name,kind", [("dit", "history"), ("flux", "history"), ("flux", "heads"), ("sd3", "guided")])
def test_case_11_own_weights_are_read_beside_quantised_ones(exported, name, kind):
    """The layers are int8 before the history is attached, as a quantised load makes them."""
    folder = exported(name, kind)
    expected = draw(opened(folder), name)
    index = json.loads((folder / "model_index.json").read_text())
    transformer = getattr(diffusers, index["transformer"][1]).from_pretrained(folder / "transformer")
    torch.ao.quantization.quantize_dynamic(transformer, {torch.nn.Linear}, torch.qint8, inplace=True)
    pipeline = opened(folder, transformer=transformer)
    gates = [p for key, p in pipeline.transformer.named_parameters() if key.endswith("history_gate")]
    assert gates and all(gate.item() == 0.5 for gate in gates)
    assert (draw(pipeline, name) - expected).abs().mean() < 0.03


def test_case_11_int8_by_torchao(exported):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    config = {"transformer": diffusers.TorchAoConfig(Int8WeightOnlyConfig())}
    for name, kind in (("flux", "history"), ("flux", "heads"), ("dit", "history")):
        options = {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=config)}
        images = draw(opened(exported(name, kind), **options), name)
        assert (images - draw(opened(exported(name, kind)), name)).abs().mean() < 0.03


# Case 12


@pytest.mark.parametrize("name,kind", FULL)
def test_case_12_four_threads_draw_the_right_images(exported, name, kind):
    pipeline = opened(exported(name, kind))
    expected = [draw(pipeline, name, seed) for seed in range(4)]
    parts, found = dict(pipeline.components), {}

    def run(seed):
        found[seed] = [draw(pipeline, name, seed) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert all(torch.allclose(images, expected[seed], atol=1e-5) for images in found[seed])
    assert all(part is parts[key] for key, part in pipeline.components.items())
    assert pipeline.to(torch.float64).transformer.dtype == torch.float64


@pytest.mark.parametrize("name", CALLS)
def test_case_12_a_call_changes_nothing_of_the_pipeline(exported, name):
    pipeline = opened(exported(name, "history"))
    stock = control(exported(name, "teacher"))
    draw(stock, name)
    before, config = dict(vars(pipeline)), dict(pipeline.config)
    weights = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    draw(pipeline, name)
    with pytest.raises(ValueError, match="guidance"):
        draw(pipeline, name, guidance_scale=50.0) if name != "flux" else draw(pipeline, name, negative_prompt="x")
    assert all(vars(pipeline)[key] is value for key, value in before.items()) and dict(pipeline.config) == config
    assert {*vars(pipeline)} - {*before} <= {*vars(stock)}  # what the stock one notes, too
    assert all(torch.equal(value, weights[key]) for key, value in pipeline.transformer.state_dict().items())


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("way", ["given", "outside"])
def test_case_12_a_callback_steers_the_call(exported, name, way):
    for pipeline in (control(exported(name, "teacher")), opened(exported(name, "history"))):
        seen = []

        def stop(pipe, step, timestep, tensors, pipeline=pipeline, seen=seen):
            seen.append(step)
            (pipe if way == "given" else pipeline)._interrupt = True
            return tensors

        draw(pipeline, name, callback_on_step_end=stop)
        assert seen == [0] and pipeline.num_timesteps == 2

        def clear(pipe, step, timestep, tensors):
            return {"latents": torch.zeros_like(tensors["latents"])}

        first, second = (draw(pipeline, name, seed, callback_on_step_end=clear) for seed in (0, 1))
        assert torch.equal(first, second)


# Case 13


@pytest.mark.parametrize("name,kind", MORE)
def test_case_13_pickled_and_copied_pipelines_draw_the_same(exported, name, kind):
    pipeline = opened(exported(name, kind))
    again = pickle.loads(pickle.dumps(pipeline))
    other = copy.deepcopy(pipeline)
    expected = draw(pipeline, name)
    for parameter in pipeline.transformer.parameters():
        parameter.data.zero_()
    assert near(draw(again, name), expected) and near(draw(other, name), expected)
    ours = load(exported(name, kind))
    assert near(draw(pickle.loads(pickle.dumps(ours)), name), draw(ours, name))


@pytest.mark.parametrize("name,kind", MORE)
def test_case_13_students_and_transformers_go_through_torch_save(exported, tmp_path, name, kind):
    student = Student.from_pretrained(exported(name, kind))
    torch.save(student, tmp_path / "student.pt")
    again = torch.load(tmp_path / "student.pt", weights_only=False)
    for key, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert again.transformer.attachment.history is again.history is not student.history
    pipeline = opened(exported(name, kind))
    expected = draw(pipeline, name)
    torch.save(pipeline.transformer, tmp_path / "transformer.pt")
    pipeline.transformer = torch.load(tmp_path / "transformer.pt", weights_only=False)
    assert near(draw(pipeline, name), expected)


@pytest.mark.parametrize("name,kind", MORE)
def test_case_13_saved_in_shards_it_loads_again(exported, tmp_path, name, kind):
    folder = exported(name, kind)
    pipeline = opened(folder)
    expected, kept = draw(pipeline, name), type(pipeline.transformer)
    pipeline.transformer.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len([*(tmp_path / "transformer").glob("*.safetensors")]) > 1
    transformer = kept.from_pretrained(tmp_path / "transformer")
    assert near(draw(opened(folder, transformer=transformer), name), expected)
    pipeline.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    again = opened(tmp_path / "whole")
    assert near(draw(again, name), expected)
    load(folder).save_pretrained(tmp_path / "ours")
    shutil.rmtree(tmp_path / "whole")
    again.save_pretrained(tmp_path / "twice")
    for copied in ("ours", "twice"):
        assert near(draw(opened(tmp_path / copied), name), expected)
        assert near(draw(load(tmp_path / copied), name), expected)


@pytest.mark.parametrize("name,kind", FULL)
def test_case_13_processors_backends_and_caches(exported, name, kind):
    for change in (
        lambda p: p.transformer.set_attn_processor(dict(p.transformer.attn_processors)),
        lambda p: p.transformer.set_attn_processor(type(next(iter(p.transformer.attn_processors.values())))()),
        lambda p: p.transformer.set_attention_backend("native"),
    ):
        same_as_stock(exported, name, kind, change)


@pytest.mark.parametrize("name,kind", MORE)
def test_case_13_from_pipe_and_components(exported, name, kind):
    same_as_stock(exported, name, kind, lambda p: type(p)(**p.components, **p.parameters))
    same_as_stock(exported, name, kind, lambda p: DiffusionPipeline.from_pipe(p))
    pipeline = opened(exported(name, kind))
    expected = draw(pipeline, name)
    again = type(pipeline).from_pipe(pipeline)
    assert near(draw(again, name), expected) and again.transformer is pipeline.transformer
