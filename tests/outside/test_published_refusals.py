"""Teachers that are not supported are refused with what to do."""

import json
import shutil

import diffusers
import pytest
import torch
from publish import Storage, publish
from refusals import Refusal, check_refusal

from ardistill.publishing import load
from ardistill.teacher import knots_from_scheduler


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with teachers that have one fault each."""
    base = tmp_path_factory.mktemp("broken")
    dit = publish("dit", base / "dit", Storage())

    def spoilt(name, path, **changes):
        shutil.copytree(dit, base / name)
        file = base / name / path
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    for option in ("thresholding", "clip"):
        spoilt(option, "scheduler/scheduler_config.json", **({option: True} if option == "thresholding" else {}))
    spoilt("zero_snr", "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    spoilt("scheduler", "scheduler/scheduler_config.json", _class_name="NoSuchScheduler")
    at_odds = {"_class_name": "UniPCMultistepScheduler", "shift_terminal": 0.1, "use_flow_sigmas": False}
    spoilt("at_odds", "scheduler/scheduler_config.json", **at_odds)
    spoilt("lcm", "scheduler/scheduler_config.json", _class_name="LCMScheduler")
    spoilt("quantised", "transformer/config.json", quantization_config={"quant_method": "bitsandbytes"})
    spoilt("old", "transformer/config.json", norm_type="layer_norm")
    spoilt("part", "model_index.json", vae=["diffusers", "AutoencoderOfOldTimes"])
    shutil.copytree(dit, base / "empty")
    for file in (base / "empty" / "transformer").glob("diffusion*"):
        file.unlink()
    shutil.copytree(dit, base / "torn")
    (base / "torn" / "scheduler" / "scheduler_config.json").write_text("{")
    both = publish("dit", base / "both", Storage(torch.float16, variant="fp16"))
    (both / "transformer" / "diffusion_pytorch_model.bf16.safetensors").write_bytes(b"")
    (base / "single.safetensors").write_bytes(b"")
    shutil.rmtree(base / "clip")
    return base


def record(teacher):
    options = "--num_trajectories 2 --guidance_scale 1.0 --solver_steps 4 --num_steps [2]"
    return f"record --teacher {teacher} --out data {options}"


def of_scheduler(name, **options):
    def act(_):
        knots_from_scheduler(getattr(diffusers, name)(**options), 4)

    return act


FLOW, SOLVER = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"


FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


SET = "in scheduler/scheduler_config.json"


REFUSALS = {
    "karras": Refusal(of_scheduler(FLOW, use_karras_sigmas=True), "use_karras_sigmas=True.*not", f"to false {SET}"),
    "exponential": Refusal(
        of_scheduler(FLOW, use_exponential_sigmas=True), "use_exponential_sigmas=True", f"to false {SET}"
    ),
    "lu": Refusal(of_scheduler(SOLVER, use_lu_lambdas=True), "use_lu_lambdas=True", f"to false {SET}"),
    "stochastic": Refusal(of_scheduler(FLOW, stochastic_sampling=True), "stochastic_sampling=True", f"to false {SET}"),
    "sde": Refusal(
        of_scheduler(SOLVER, algorithm_type="sde-dpmsolver++"), "algorithm_type='sde", r'"dpmsolver\+\+" ' + SET
    ),
    "timestep_type": Refusal(
        of_scheduler("EulerDiscreteScheduler", timestep_type="continuous"), "timestep_type='con", f'to "discrete" {SET}'
    ),
    "flow sigmas of a model of noise": Refusal(
        of_scheduler(SOLVER, use_flow_sigmas=True), "prediction_type flow_prediction, got 'epsilon'", f"set .* {SET}"
    ),
    "noise left": Refusal(
        of_scheduler("UniPCMultistepScheduler", final_sigmas_type="sigma_min", **FLOW_SIGMAS), "leaves", f'"zero" {SET}'
    ),
    "interpolation": Refusal(
        of_scheduler("EulerDiscreteScheduler", interpolation_type="log_linear"), "interpolation_type=", "to .linear"
    ),
    "another kind": Refusal(of_scheduler("KarrasVeScheduler"), "unknown scheduler Karras", "expected one with alphas"),
    "options at odds": Refusal(record("at_odds"), "scheduler_config.json: .*shift_terminal", "use_flow_sigmas"),
    "home of nobody": Refusal(record("~nobody-here/dit"), "home of a user", "write it out"),
    "address": Refusal(record("https://huggingface.co/facebook/DiT-XL-2-256"), "such as facebook/", "with --teacher"),
    "inverse": Refusal(of_scheduler("DDIMInverseScheduler"), "runs from image to noise", "set another _class_name"),
    "thresholding": Refusal(record("thresholding"), "thresholding=True of DDIMScheduler", f"to false {SET}"),
    "zero_snr": Refusal(record("zero_snr"), "pure noise .*epsilon", f"set rescale_betas_zero_snr to false {SET}"),
    "unknown scheduler": Refusal(record("scheduler"), "unknown scheduler 'NoSuchScheduler'", "diffusers has none such"),
    "distilled": Refusal(record("lcm"), "LCMScheduler.*distilled already", "name the model that it was made from"),
    "quantised": Refusal(record("quantised"), "weights are quantised .bitsandbytes", "name the model"),
    "class": Refusal(record("old"), "unknown transformer class 'Transformer2DModel'", "register_family"),
    "part": Refusal(record("part"), "diffusers has no class 'AutoencoderOfOldTimes'", "update diffusers"),
    "no weights": Refusal(record("empty"), "transformer: its weights cannot be loaded", "download or save it again"),
    "torn": Refusal(record("torn"), "scheduler_config.json cannot be read", "download the pipeline again"),
    "variants": Refusal(record("both"), "variants bf16, fp16 alone", "name one of them .*NAME:bf16"),
    "variant": Refusal(record("both:fp8"), "bf16, fp16 alone, not fp8", "name one of them"),
    "no variant": Refusal(record("dit:fp16"), "no weights of the variant fp16, but of no variant", "leave :fp16 out"),
    "revision": Refusal(record("./dit/../dit@main"), "found nothing", "with --teacher"),
    "single file": Refusal(record("single.safetensors"), "expected a diffusers folder", "from_single_file"),
    "zoo": Refusal(record("zoo/fashon"), "expected a teacher of the zoo, zoo/", "zoo/fashion"),
    "hub": Refusal(record("runs/teacher"), "found no folder .*/runs/teacher, and could not load", "with --teacher"),
    "cost of nothing": Refusal("cost --teacher runs/teacher", "found no folder .*/runs/teacher", "with --teacher"),
    "cost of an old class": Refusal("cost --teacher old", "unknown transformer class", "register_family"),
    "export of nothing": Refusal(lambda _: load("runs/none"), "found no folder .*/runs/none", "name the folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name, broken, monkeypatch, capsys):
    monkeypatch.chdir(broken)
    before = sorted(broken.iterdir())
    row = REFUSALS[name]
    check_refusal(row, capsys, *([broken] if callable(row.act) else []))
    assert sorted(broken.iterdir()) == before
