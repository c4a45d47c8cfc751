"""Sampling as one CUDA graph: equal to `sample` where CUDA is, and refused in one line elsewhere."""

import pytest
import torch
from tiny_students import batch, make

from ardistill.student import sample


def test_a_student_that_is_not_on_cuda_is_refused():
    with pytest.raises(ValueError, match=r"expected a student on CUDA, .* got one on cpu; draw with ardistill.sample"):
        make("dit").graphed(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["dit", "pixart-alpha", "sd3", "flux", "wan", "z-image-ragged"])
@pytest.mark.parametrize("compiled", [False, True])
def test_graphed_equals_eager(name, compiled):
    student = make(name, 2).to("cuda")
    inputs, condition = batch(name, 3)
    expected = sample(student, inputs[:, 0], condition, "no")
    if compiled:
        student.compile()
    graphed = student.graphed(3, "no")
    tolerance = 1e-4 * expected.abs().max()
    for rows in (3, 3, 2):
        some = {key: value[:rows] for key, value in condition.items()}
        assert (graphed(inputs[:rows, 0], some) - expected[:rows]).abs().max() <= tolerance
    with pytest.raises(ValueError, match="expected 3 rows or fewer"):
        graphed(inputs[:, 0].repeat(2, 1, 1, 1), condition)
