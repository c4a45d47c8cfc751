"""What an exported pipeline cannot do is refused by an error that says what to do instead."""

import shutil

import accelerate
import diffusers
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from diffusers.hooks import HookRegistry, ModelHook
from refusals import Refusal, check_refusal
from safetensors.torch import load_file, save_file
from whole import draw, opened

from ardistill.publishing import load

pytestmark = pytest.mark.slow

# Refusals


class Silent:
    """A processor that makes no call of attention."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        return hidden_states if encoder_hidden_states is None else (hidden_states, encoder_hidden_states)


def _assign(part, make):
    def act(pipeline, folder):
        setattr(pipeline, part, make(pipeline, folder))

    return act


def _call(**options):
    return lambda pipeline, folder: draw(pipeline, "sd3", **options)


def _stock_of(pipeline, folder):
    return type(pipeline.transformer).from_pretrained(folder.parent / "teacher" / "transformer")


def _silent(pipeline, folder):
    for block in pipeline.transformer.transformer_blocks:
        block.attn.processor = Silent()
    draw(pipeline, "sd3")


def _copied_without(keep):
    """Load a copy of the export whose transformer's weights are changed."""

    def act(pipeline, folder):
        broken = folder.parent / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        path = broken / "transformer" / "diffusion_pytorch_model.safetensors"
        keep(path)
        transformer = type(pipeline.transformer).from_pretrained(folder / "transformer")
        transformer.register_to_config(_name_or_path=str(broken / "transformer"))
        opened(broken, transformer=transformer)

    return act


def _without_gates(path):
    save_file({key: x for key, x in load_file(path).items() if "history_gate" not in key}, path)


def _two_gates(path):
    save_file({key: x.repeat(2) if "history_gate" in key else x for key, x in load_file(path).items()}, path)


def _another_student(pipeline, folder):
    return opened(folder.parent / "guided").transformer


def _from_pipe(pipeline, folder):
    draw(AutoPipelineForText2Image.from_pipe(pipeline), "sd3", num_inference_steps=2)


def _alone(pipeline, folder):
    pipeline.transformer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 12), torch.zeros(1, 10), torch.zeros(1))


def _hooked_before(pipeline, folder):
    transformer = type(pipeline.transformer).from_pretrained(folder / "transformer")
    for block in transformer.transformer_blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(ModelHook(), "skip")
    opened(folder, transformer=transformer)


def _offloaded_before(pipeline, folder):
    transformer = type(pipeline.transformer).from_pretrained(folder / "transformer")
    accelerate.cpu_offload(transformer, torch.device("cpu"))
    opened(folder, transformer=transformer)


def _without_transformer(pipeline, folder):
    draw(opened(folder, transformer=None), "sd3")


def _stock_folder(pipeline, folder):
    load(folder.parent / "teacher")


def _bare(pipeline, folder):
    type(pipeline)(**pipeline.components)


REFUSALS = {
    "steps": Refusal(_call(num_inference_steps=28), "draws in 2 steps", "leave num_inference_steps out"),
    "sigmas": Refusal(_call(sigmas=[1.0, 0.5]), "times are fixed", "leave sigmas out"),
    "mu": Refusal(_call(mu=1.0), "times are fixed", "leave mu out"),
    "negative prompt": Refusal(_call(negative_prompt="bad"), "absorbed", "leave negative_prompt out"),
    "guidance": Refusal(_call(guidance_scale=7.0), "absorbed", "leave guidance_scale out"),
    "no such option": Refusal(_call(promt="a"), "unexpected keyword argument", "promt"),
    "class": Refusal(
        _assign("transformer", lambda p, f: p.vae), "class SD3Transformer2DModel, got AutoencoderKL", "expected"
    ),
    "no module": Refusal(_assign("transformer", lambda p, f: "a"), "class SD3Transformer2DModel, got str", "expected"),
    "without history": Refusal(
        _assign("transformer", _stock_of), "the student's own weights .*found none", "load one from the export"
    ),
    "another student": Refusal(
        _assign("transformer", _another_student), "of another student", "draw with the other student's own pipeline"
    ),
    "scheduler": Refusal(
        _assign("scheduler", lambda p, f: diffusers.FlowMatchEulerDiscreteScheduler()), "fixed", "keep the one it has"
    ),
    "own weights missing": Refusal(_copied_without(_without_gates), "found none", "load one from the export"),
    "own weights cut": Refusal(
        _copied_without(lambda path: path.write_bytes(path.read_bytes()[:500])), "cut or damaged", "export or download"
    ),
    "own weights of another shape": Refusal(_copied_without(_two_gates), "is \\(2,\\)", "load the transformer of this"),
    "processor": Refusal(_silent, "expected one call of scaled_dot_product_attention", "native attention backend"),
    "another pipeline": Refusal(_from_pipe, "by another pipeline", "call the Student or the exported pipeline"),
    "alone": Refusal(_alone, "called directly", "call the Student or the exported pipeline"),
    "hooks before": Refusal(_hooked_before, "without hooks", "enable them there"),
    "offloaded before": Refusal(_offloaded_before, "offloaded", "enable offloading afterwards"),
    "no transformer": Refusal(_without_transformer, "without its transformer", "load it with one"),
    "no export": Refusal(_stock_folder, "expected an exported student", "found none"),
    "no configuration": Refusal(_bare, "expected the student's configuration", "from_pretrained"),
    "push": Refusal(
        lambda p, f: p.save_pretrained(f.parent / "pushed", push_to_hub=True), "would upload a part", "hf upload"
    ),
}


@pytest.mark.parametrize("row", REFUSALS)
def test_what_cannot_work_is_refused(exported, row, capsys):
    folder = exported("sd3", "history")
    exported("sd3", "guided")
    check_refusal(REFUSALS[row], capsys, opened(folder), folder)
    assert not (folder.parent / "pushed").exists()
