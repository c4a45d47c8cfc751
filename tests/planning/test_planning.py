"""The cost of a distillation: equal to the counts of the paper, and bad input is refused."""

import json
from dataclasses import replace

import pytest
import torch
from original_dit import ROW, DiT
from tiny import ONE_EACH, TINY

from ardistill.cli import main
from ardistill.config import CostConfig
from ardistill.evaluation.cost import count_macs
from ardistill.families import FAMILIES, family_of, register_family
from ardistill.planning import cost, describe
from ardistill.planning.fit import cheapest_fit, smallest_card
from ardistill.planning.memory import Activations, Memory, Weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("steps,layers,macs", [(4, 6, 480.10), (2, 28, 241.56)])
def test_costs_of_dit_xl2_are_the_papers(capsys, steps, layers, macs):
    n = ["--num-steps", str(steps), "--history-layers", str(layers)]
    solver_steps = 25 if steps == 4 else 24
    main(["cost", "--teacher", "DiT-XL/2", *n, "--mask", "M4", "--solver_steps", str(solver_steps), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["macs_per_image"] == pytest.approx(macs, abs=0.05)
    assert found["macs_per_image_step_distillation"] == pytest.approx(474.67 * steps / 4, abs=0.05)
    assert found["macs_per_image_teacher"] == pytest.approx(5933 * solver_steps / 25, abs=1)  # guided
    parameters = 749_826_464 + layers  # the stock transformer's, and a gate in each layer with history
    assert found["parameters"] == parameters
    assert found["memory"]["optimizer"] == 2 * found["memory"]["weights"] == 8 * parameters


class Asking(DiT):
    def forward(self, x, t, y):
        return super().forward(x.abs() if x.sum() > 0 else x, t, y)


def test_what_cannot_be_counted_says_so(tmp_path):
    if "Asking" not in FAMILIES:
        register_family(Asking, ROW)
    Asking().save_config(tmp_path)
    with pytest.raises(ValueError, match="Asking asks for values of its inputs as it runs"):
        cost(CostConfig(str(tmp_path / "config.json"), history_layers=2))


@pytest.mark.parametrize(
    "name", ["hidream", "hidream-wide", "hunyuan-image", "hunyuan-video15", "lumina2-ragged", "mochi"]
)
def test_models_that_choose_tokens_by_values_are_counted_as_they_run(name, tmp_path):
    """By masks of prompts, here of full length, and by experts, whatever they choose."""
    transformer = TINY[name].transformer()
    transformer.save_config(tmp_path)
    family, (*_, height, width) = family_of(transformer), TINY[name].latents
    options = {
        "num_steps": 1,
        "history_layers": 0,
        "text_tokens": 6,
        "height": height,
        "width": width,
        "guidance_scale": 1.0,
    }
    found = cost(CostConfig(str(tmp_path / "config.json"), **options))
    noise = torch.randn(1, *family.latent_shape(transformer, height, width))
    condition = {
        key: torch.randn(x.shape) if x.is_floating_point() else x
        for key, x in family.example_condition(transformer, 1, 6).items()
    }
    ran = count_macs(lambda: family.call(transformer, noise, torch.full((1,), 500.0), condition))
    assert found.macs_per_image_teacher * 1e9 / 24 == pytest.approx(ran, rel=1e-6)


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_family_is_counted_from_its_config_alone(name, tmp_path):
    TINY[name].transformer().save_config(tmp_path)
    few = {"num_steps": 2, "history_layers": 1}
    options = CostConfig(str(tmp_path / "config.json"), num_prompts=10, text_tokens=6, batch_size=2, **few)
    found = cost(options)
    assert 0 < found.macs_per_image_step_distillation < found.macs_per_image < found.macs_per_image_teacher
    assert found.bytes_per_prompt == 0 if name.startswith("dit") else found.bytes_per_prompt > 0
    assert found.memory["total"] > found.memory["activations"] > 0
    text = describe(found, options)
    assert "against step distillation" in text and ("stored once" in text) == (not name.startswith("dit"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A plan of a tiny DiT, with options."""
    folder = tmp_path_factory.mktemp("tiny")
    TINY["dit"].transformer().save_config(folder)

    def plan(**options):
        options = {
            "history_layers": 2,
            "num_steps": 2,
            "batch_size": 4,
            "mixed_precision": "no",
            "weights": "float32",
        } | options
        return cost(CostConfig(str(folder / "config.json"), **options))

    return plan


def test_precision_checkpointing_and_devices_save_memory(tiny):
    memory = [
        tiny(**options).memory
        for options in ({}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"num_devices": 4})
    ]
    assert all(other["total"] < memory[0]["total"] for other in memory[1:])
    assert memory[3]["optimizer"] == memory[0]["optimizer"] // 4


def test_every_option_that_saves_memory_is_in_the_plan(tiny):
    plain = tiny()
    trained = plain.trained_parameters
    assert tiny(optimizer="adamw8bit").memory["optimizer"] == int(2 * (1 + 4 / 256) * trained)
    assert tiny(ema_device="cpu").memory["ema"] == 0 and plain.memory["ema"] == 4 * trained
    kept = {
        name: tiny(**options).memory["activations"]
        for name, options in {
            "checkpointed": {"gradient_checkpointing": True},
            "every second": {"gradient_checkpointing": True, "checkpoint_stride": 2},
            "sequential": {"sequential": True},
            "both": {"sequential": True, "gradient_checkpointing": True},
            "offloaded": {"offload_activations": True},
        }.items()
    }
    folded = plain.memory["activations"]
    assert kept["checkpointed"] < kept["every second"] < folded and kept["both"] < kept["sequential"] < folded
    assert kept["offloaded"] == folded // 3  # of three blocks, one at a time
    accumulated = {"sequential": True, "gradient_accumulation_steps": 2}
    assert plain.memory["gradients"] == tiny(sequential=True).memory["gradients"] == 4 * trained
    assert tiny(**accumulated).memory["gradients"] == 8 * trained
    assert tiny(**accumulated).macs_per_training_step == 2 * plain.macs_per_training_step


def test_an_evaluation_keeps_nothing_for_a_backward_pass_and_no_scores_of_attention(tmp_path):
    sizes = []
    for layers in (3, 6):
        config = TINY["dit"].transformer().config | {"num_layers": layers, "_class_name": "DiTTransformer2DModel"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        plan = cost(CostConfig(str(tmp_path / "config.json"), history_layers=0, weights="float32"))
        sizes.append(plan.stages["record"] - 4 * plan.parameters)
    assert sizes[0] == sizes[1] > 0
    (tmp_path / "config.json").write_text(json.dumps(config | {"sample_size": 128}))
    plan = cost(CostConfig(str(tmp_path / "config.json"), history_layers=0, weights="float32"))
    assert plan.stages["record"] < 4 * 2 * 4096**2  # bytes of one head's scores


def test_types_of_weights_are_in_the_plan(tiny):
    base = {
        kind: tiny(lora_rank=2, weights=kind, mixed_precision="no" if kind == "float32" else "bf16")
        for kind in ("float32", "bfloat16", "int8", "nf4")
    }
    sizes = [plan.memory["weights"] for plan in base.values()]
    assert sizes == sorted(sizes, reverse=True) and len({*sizes}) == 4
    assert sizes[0] - sizes[1] == 2 * (base["float32"].parameters - base["float32"].trained_parameters)
    for plan in base.values():
        assert plan.stages["record"] < plan.stages["distill"] < plan.stages["finetune"]


def test_options_are_searched_for_a_card(tiny):
    whole = tiny()
    gib = whole.memory["total"] / 2**30
    assert tiny(fit="24GB").fit.options == {}
    smaller = tiny(fit=f"{gib:.6f}").fit  # a part of a card stays free
    assert smaller.fits and smaller.time == 1 and smaller.options == {"batch_size": 2, "gradient_accumulation_steps": 2}
    none = tiny(fit="0.00001GB").fit
    assert not none.fits and "nothing fits on 0.00001GB; the least is" in none.text("0.00001GB")
    assert smallest_card(20 * 2**30) == "24 GB" and smallest_card(23 * 2**30) == "48 GB"
    assert smallest_card(2**40) == "no card"
    with pytest.raises(ValueError, match="expected a card's memory, such as 80GB, got 'large'"):
        tiny(fit="large")


def test_adapters_are_the_last_resort():
    billion = 10**9
    whole = Memory(Weights(billion, billion, billion), lambda _: Activations(0, 2**20, 24), 0, 0)
    adapted = replace(whole, weights=Weights(billion + 10**7, 10**7, billion, 10**7))
    plan = CostConfig("a teacher", weights="float32", batch_size=8)
    found = [cheapest_fit(whole, lambda _: adapted, plan, size * billion) for size in (24, 14, 3, 2, 0.1)]
    assert found[0].options == {} and found[0].bytes == 20 * billion + 8 * 2**20
    assert found[1].options == {"optimizer": "adamw8bit", "ema_device": "cpu"}
    assert found[2].options == {"lora_rank": 32, "weights": "bfloat16"}
    assert found[3].options == {"lora_rank": 32, "weights": "int8"}
    assert [x.fits for x in found] == [True] * 4 + [False] and found[4].options["weights"] == "nf4"
    assert "trains adapters in place of all weights" in found[2].text("3GB")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected one of DiT-S/2"):
        cost(CostConfig("DiT-XXL/2"))
    with pytest.raises(ValueError, match="expected 1 to 24 steps"):
        cost(CostConfig("DiT-S/4", num_steps=25))
    with pytest.raises(ValueError, match="0 to 12 history layers"):
        cost(CostConfig("DiT-S/4", history_layers=13))
