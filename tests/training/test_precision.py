"""The precision that a device gets where none is named."""

from __future__ import annotations

import pytest
import torch
from pretend_device import PretendDevice

from ardistill.devices import resolve_precision


def test_auto_is_float32_where_no_gpu_computes_in_bfloat16():
    assert resolve_precision("auto", "cpu") == "no"
    if not torch.cuda.is_available():
        assert resolve_precision("auto", "cuda") == "no"
    with PretendDevice():
        assert resolve_precision("auto", "pretend") == "no"


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_a_named_precision_is_kept(name):
    assert resolve_precision(name, "cpu") == name


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp16'; known: auto, no, bf16"):
        resolve_precision("fp16", "cpu")
