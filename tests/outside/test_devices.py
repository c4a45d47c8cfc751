"""Work happens where the given model is, else on the best device there is; what a person keeps is on the CPU."""

from __future__ import annotations

import json

import pytest
import torch
from pretend_device import DEVICE, PretendDevice
from tiny_families import TINY, open_gates

from ardistill.config import AdversarialConfig, TrainingConfig
from ardistill.devices import best_device, resolve_device
from ardistill.discriminator import Adversary, Discriminator
from ardistill.sampling import sample
from ardistill.schedule import Knots
from ardistill.student import Student, StudentConfig
from ardistill.teacher import Teacher


@pytest.fixture
def pretend():
    with PretendDevice() as mode:
        yield mode


def test_the_best_device_is_there_within_alone():
    assert best_device() == torch.device("cpu")
    with PretendDevice():
        assert best_device() == resolve_device() == resolve_device("auto") == DEVICE
    assert best_device() == torch.device("cpu")


def test_the_device_has_an_accelerators_rules(pretend):
    here, there = torch.ones(2, device="pretend"), torch.ones(2)
    for wrong in (lambda: here + there, lambda: torch.randn(2, generator=torch.Generator(), device="pretend")):
        with pytest.raises(RuntimeError, match="expected"):
            wrong()
    assert float((here + here.clone()).sum()) == 4.0
    assert pretend.events == ["wait"]
    torch.ones(3).to("pretend").cpu()
    assert pretend.events == ["wait", "to device", "to host"]
