"""The teacher: guidance, learned sigma, what it is loaded from, and what it refuses."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ardistill.core.knots import Knots
from ardistill.teacher import Teacher, knots_from_scheduler
from ardistill.trajectories import condition_uniformly, knot_indices, nested_indices, same_states, select_knots


def states(teacher, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *teacher.sample_shape, generator=generator), {"class_labels": torch.arange(count) % 5}


def test_guidance_is_what_ho_and_salimans_wrote(teacher):
    noise, condition = states(teacher)
    times = torch.full((3,), 500.0)
    conditional, unconditional = (
        teacher.transformer(noise, times, labels).sample[:, :4]
        for labels in (condition["class_labels"], torch.full((3,), 5))
    )
    expected = unconditional + 2.5 * (conditional - unconditional)
    guided = Teacher(teacher.transformer, teacher.scheduler, 2.5)
    assert torch.allclose(guided.predict(noise, 500.0, condition), expected, atol=1e-5)
    three = Teacher(teacher.transformer, teacher.scheduler, 2.5, guidance_channels=3)
    found = three.predict(noise, 500.0, condition)
    assert torch.allclose(found[:, :3], expected[:, :3], atol=1e-5)
    assert torch.allclose(found[:, 3:], conditional[:, 3:], atol=1e-5)


def test_a_learned_sigma_is_cut_off(teacher):
    noise, condition = states(teacher)
    assert teacher.transformer.config.out_channels == 2 * teacher.transformer.config.in_channels
    assert teacher.predict(noise, 500.0, condition).shape == noise.shape


def test_a_latent_teacher_is_loaded_with_its_vae_and_class_names(teacher, tmp_path):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    names = {i: f"class {i}, alias {i}" for i in range(5)}
    DiTPipeline(teacher.transformer, vae, teacher.scheduler).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"  # diffusers writes no id2label, but published folders have it
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    loaded = Teacher.from_pretrained(tmp_path, device="cpu")
    assert loaded.fingerprint() == teacher.fingerprint() and loaded.companions["id2label"]["3"] == names[3]
    latents, _ = states(teacher)
    images = vae.decode(latents / vae.config.scaling_factor).sample
    assert torch.allclose(loaded.decode(latents), images.clamp(-1, 1), atol=1e-5)


def test_what_cannot_be_a_teacher_is_refused(teacher, tmp_path):
    transformer = teacher.transformer
    with pytest.raises(ValueError, match="expected subfolders transformer and scheduler"):
        Teacher.from_pretrained(tmp_path / ".." / tmp_path.name)
    with pytest.raises(ValueError, match="expected a diffusers folder"):
        Teacher.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown transformer class 'AutoencoderKL'; known: DiT"):
        Teacher(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), teacher.scheduler)
    with pytest.raises(ValueError, match="1 to 4 guided channels, got 5"):
        Teacher(transformer, teacher.scheduler, 2.0, guidance_channels=5)
    with pytest.raises(ValueError, match="draws latents of 4 channels, and there is no VAE"):
        teacher.decode(torch.zeros(1, 4, 8, 8))
    transformer.save_pretrained(tmp_path / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "NoSuchScheduler"}))
    with pytest.raises(ValueError, match="unknown scheduler 'NoSuchScheduler'"):
        Teacher.from_pretrained(tmp_path)


def test_solvers_of_other_kinds_with_flow_sigmas_are_flow_matching():
    """Wan is published with this scheduler."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    expected = knots_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 24)
    for scheduler in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        assert knots_from_scheduler(scheduler(**flow), 24) == expected
    with pytest.raises(ValueError, match="unknown prediction type 'flow_prediction'"):
        knots_from_scheduler(UniPCMultistepScheduler(prediction_type="flow_prediction"), 24)


def test_a_reversed_flow_has_the_same_states_and_the_opposite_prediction_and_time():
    """Mochi is published with this option."""
    flow, reverse = (knots_from_scheduler(FlowMatchEulerDiscreteScheduler(invert_sigmas=x), 4) for x in (False, True))
    assert (reverse.alpha, reverse.sigma) == (flow.alpha, flow.sigma)
    assert reverse.timesteps == tuple(1000 - t for t in flow.timesteps)
    assert reverse.coefficients("state") == [(a, -b) for a, b in flow.coefficients("state")]


def test_schedules_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="unknown prediction type 'direction'"):
        knots_from_scheduler(DDIMScheduler(prediction_type="direction"), 4)
    with pytest.raises(ValueError, match="unknown prediction type 'noise'; known: epsilon"):
        Knots("noise", (999.0,), (0.0, 1.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="dynamic shifting needs mu"):
        knots_from_scheduler(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)
    with pytest.raises(ValueError, match="expected 1 to 1000 solver steps, got 1001"):
        knots_from_scheduler(DDIMScheduler(), 1001)
    with pytest.raises(ValueError, match="unknown scheduler ScoreSdeVeScheduler"):
        from diffusers import ScoreSdeVeScheduler

        knots_from_scheduler(ScoreSdeVeScheduler(), 4)
    assert knots_from_scheduler(EulerDiscreteScheduler(), 4).num_steps == 4  # same noise schedule, other solver


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8])
def test_students_knots_lie_on_the_24_step_grid(teacher, steps):
    fine = select_knots(teacher.knots(24), nested_indices(24, steps))
    coarse = teacher.knots(steps)
    assert fine.timesteps == coarse.timesteps and same_states(fine, coarse)


def test_knots_are_found_by_number_by_index_and_by_a_students_own(teacher):
    solver = teacher.knots(24)
    assert knot_indices(solver, 4) == (0, 6, 12, 18, 24)
    uneven = (0, 6, 15, 21, 24)
    assert knot_indices(solver, [*uneven]) == uneven
    assert knot_indices(solver, condition_uniformly(select_knots(solver, uneven))) == uneven
    for wrong in ([0], [0, 24, 12], [0, 12], [1, 12, 24], [0, 12, 12, 24]):
        with pytest.raises(ValueError, match="rising from 0 to 24"):
            knot_indices(solver, wrong)
    with pytest.raises(ValueError, match="not among the states of the 24 solver steps"):
        knot_indices(solver, teacher.knots(7))


def test_null_class_is_the_one_after_the_last(teacher):
    assert isinstance(teacher.transformer, DiTTransformer2DModel)
    null = teacher.null_condition({"class_labels": torch.arange(3)})
    assert null["class_labels"].tolist() == [5, 5, 5]


def original_names(transformer):
    """A diffusers DiT's weights under the names of facebookresearch/DiT."""
    weights, original = transformer.state_dict(), {"pos_embed": transformer.pos_embed.pos_embed}
    renamed = {"x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1"}
    renamed["final_layer.linear"] = "proj_out_2"
    embedder = "transformer_blocks.0.norm1.emb"
    for i, name in ((0, "linear_1"), (2, "linear_2")):
        renamed[f"t_embedder.mlp.{i}"] = f"{embedder}.timestep_embedder.{name}"
    for i in range(len(transformer.transformer_blocks)):
        for old, new in (("adaLN_modulation.1", "norm1.linear"), ("attn.proj", "attn1.to_out.0")):
            renamed[f"blocks.{i}.{old}"] = f"transformer_blocks.{i}.{new}"
        for old, new in (("mlp.fc1", "ff.net.0.proj"), ("mlp.fc2", "ff.net.2")):
            renamed[f"blocks.{i}.{old}"] = f"transformer_blocks.{i}.{new}"
        for kind in ("weight", "bias"):
            parts = [weights[f"transformer_blocks.{i}.attn1.{name}.{kind}"] for name in ("to_q", "to_k", "to_v")]
            original[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    for old, new in renamed.items():
        for kind in ("weight", "bias"):
            original[f"{old}.{kind}"] = weights[f"{new}.{kind}"]
    original["y_embedder.embedding_table.weight"] = weights[f"{embedder}.class_embedder.embedding_table.weight"]
    return original


def test_a_size_is_given_in_pixels_or_in_latents():
    for size in ({"height": 28, "width": 28}, {"num_frames": 5}):
        with pytest.raises(ValueError, match="pixels and frames, or latent_shape, got both; leave one out"):
            Teacher.from_pretrained("zoo/fashion", latent_shape=(1, 28, 28), **size)


def test_an_original_checkpoint_is_a_teacher(tmp_path):
    torch.manual_seed(0)
    options = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 2, "sample_size": 8}
    transformer = DiTTransformer2DModel(**options, out_channels=8, num_embeds_ada_norm=5).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(transformer.transformer_blocks[0].norm1.emb.state_dict())
    torch.save({"ema": original_names(transformer), "opt": {}}, tmp_path / "dit.pt")
    loaded = Teacher.from_pretrained(tmp_path / "dit.pt", guidance_scale=1.5, guidance_channels=3, device="cpu")
    expected = Teacher(transformer, DDIMScheduler(), 1.5, 3)
    noise, condition = states(loaded)
    assert loaded.sample_shape == (4, 8, 8) and loaded.num_classes == 5
    assert torch.equal(loaded.predict(noise, 500.0, condition), expected.predict(noise, 500.0, condition))
    sized = Teacher.from_pretrained(tmp_path / "dit.pt", latent_shape=(4, 4, 4), device="cpu")
    assert sized.sample_shape == (4, 4, 4)
    with pytest.raises(ValueError, match="has no VAE that turns pixels into latents; give latent_shape"):
        Teacher.from_pretrained(tmp_path / "dit.pt", height=64, width=64)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a state dict of the original DiT"):
        Teacher.from_pretrained(tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "dit.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a state dict"):
        Teacher.from_pretrained(tmp_path / "torn.pt")
