"""Inputs, targets and weights of the regression."""

import pytest
import torch

from ardistill.core.knots import Knots
from ardistill.training.losses import inputs_and_targets, step_weights

KNOTS = Knots("epsilon", (999.0, 499.0), (0.1, 0.6, 1.0), (0.9, 0.8, 0.0))


def test_an_unknown_target_is_refused():
    states = torch.zeros(1, 3, 1, 2, 2)
    with pytest.raises(ValueError, match="unknown target 'noise'; known: state, denoised, anchored"):
        inputs_and_targets(states, states[:, 1:], KNOTS, "noise")
    with pytest.raises(ValueError, match="unknown target 'noise'; known: state, denoised, anchored"):
        step_weights(KNOTS, "noise")
