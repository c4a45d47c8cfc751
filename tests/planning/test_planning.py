"""The cost of a distillation: equal to the counts of the paper, and bad input is refused."""

import json

import pytest
from original_dit import ROW, DiT
from tiny_families import TINY

from ardistill.cli import main
from ardistill.config import CostConfig
from ardistill.families import FAMILIES, register_family
from ardistill.planning import cost, describe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "steps,layers,macs", [(4, 0, 474.67), (4, 6, 480.10), (4, 28, 500.03), (2, 6, 238.24), (2, 28, 241.56)]
)
def test_macs_of_dit_xl2_are_the_papers(capsys, steps, layers, macs):
    n = ["--num-steps", str(steps), "--history-layers", str(layers)]
    main(["cost", "--teacher", "DiT-XL/2", *n, "--mask", "M4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["macs_per_image"] == pytest.approx(macs, abs=0.05)
    assert found["macs_per_image_step_distillation"] == pytest.approx(474.67 * steps / 4, abs=0.05)


def test_the_25_step_guided_teacher_is_the_papers():
    found = cost(CostConfig("DiT-XL/2", solver_steps=25))
    assert found.macs_per_image_teacher == pytest.approx(5933, abs=1)
    assert found.parameters == 749_826_464 + 6  # the stock transformer's, and a gate in each layer with history
    assert found.memory["optimizer"] == 2 * found.memory["weights"] == 8 * found.parameters


class Asking(DiT):
    def forward(self, x, t, y):
        return super().forward(x.abs() if x.sum() > 0 else x, t, y)


def test_what_cannot_be_counted_says_so(tmp_path):
    if "Asking" not in FAMILIES:
        register_family(Asking, ROW)
    Asking().save_config(tmp_path)
    with pytest.raises(ValueError, match="Asking asks for values of its inputs as it runs"):
        cost(CostConfig(str(tmp_path / "config.json"), history_layers=2))


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_counted_from_its_config_alone(name, tmp_path):
    TINY[name].transformer().save_config(tmp_path)
    options = CostConfig(str(tmp_path / "config.json"), history_layers=2, num_prompts=10, text_tokens=6, batch_size=2)
    found = cost(options)
    assert 0 < found.macs_per_image_step_distillation < found.macs_per_image < found.macs_per_image_teacher
    assert found.bytes_per_prompt == 0 if name.startswith("dit") else found.bytes_per_prompt > 0
    assert found.memory["total"] > found.memory["activations"] > 0
    text = describe(found, options)
    assert "against step distillation" in text and ("stored once" in text) == (not name.startswith("dit"))


def test_precision_checkpointing_and_devices_save_memory():
    memory = [
        cost(CostConfig("DiT-S/4", batch_size=4, **options)).memory
        for options in ({}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"num_devices": 4})
    ]
    assert all(other["total"] < memory[0]["total"] for other in memory[1:])
    assert memory[3]["optimizer"] == memory[0]["optimizer"] // 4


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected one of DiT-S/2"):
        cost(CostConfig("DiT-XXL/2"))
    with pytest.raises(ValueError, match="expected 1 to 24 steps"):
        cost(CostConfig("DiT-S/4", num_steps=25))
    with pytest.raises(ValueError, match="0 to 12 history layers"):
        cost(CostConfig("DiT-S/4", history_layers=13))
