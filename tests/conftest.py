import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, DiTTransformer2DModel

from ardistill.teacher import Teacher


@pytest.fixture(autouse=True)
def accelerate_starts_afresh():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def dies_at_its_first_checkpoint():
    """Calls a training with a ``validate`` that stands for a kill there, and sees it die."""

    class Killed(Exception):
        pass

    def validate(student, step):
        raise Killed

    def run(train):
        with pytest.raises(Killed):
            train(validate)

    return run


@pytest.fixture(scope="session")
def make_dit():
    """Makes a tiny real DiT with random weights everywhere, so that nothing is hidden behind a zero gate."""

    def make(num_layers: int = 3) -> DiTTransformer2DModel:
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=num_layers,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=5,
        )
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        return transformer

    return make


@pytest.fixture
def teacher(make_dit) -> Teacher:
    """A teacher of that DiT, without guidance."""
    return Teacher(make_dit(), DDIMScheduler(), guidance_scale=1.0)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: those that the workers end with are short, so that none waits for long."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What is imported by then lives until the end: the garbage collector need not look through it at every turn."""
    gc.collect()
    gc.freeze()
