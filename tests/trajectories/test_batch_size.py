"""A shard may be solved in parts: the largest that the memory takes, or as many rows as a user says."""

import pytest
import torch
from pretend_device import DEVICE, PretendDevice
from trajectories.recordings import OPTIONS, contents

from ardistill.cli import main
from ardistill.trajectories import TrajectoryDataset, record, verify
from ardistill.trajectories.batch_size import largest_that_fits, rows_at_once
from ardistill.trajectories.manifest import Manifest
from ardistill.trajectories.shard_maker import ShardMaker


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64, 100, 256, 1000])
def test_the_search_finds_nearly_the_largest_number_in_few_tries(most):
    for limit in range(0, 2 * most + 2):
        tried = []
        found = largest_that_fits(lambda rows: (tried.append(rows), rows <= limit)[1], most)  # noqa: B023
        largest = max(1, min(limit, most))
        assert 0.75 * largest <= found <= largest and max(tried, default=0) <= most
        assert len(tried) == len(set(tried)) <= most.bit_length() + 2
        assert all(rows <= 2 * largest for rows in tried)  # memory that lacks is not asked for in vain


def test_a_shard_is_divided_into_parts_of_one_size():
    for limit, parts in ((256, 256), (255, 128), (100, 86), (1, 1)):
        found = rows_at_once(lambda rows: _out_of_memory(rows > limit), torch.device("cpu"), 256)  # noqa: B023
        assert found == parts


def _out_of_memory(is_out):
    if is_out:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def maker(teacher, tmp_path):
    """Solves the shards of a plan whose first shard has 22 rows of the larger of two shapes, or of the smaller."""
    options = OPTIONS | {"shard_size": 22, "sample_shapes": [(4, 8, 8), (4, 4, 4)], "guidance_range": (1.0, 3.0)}
    manifest = record(teacher, tmp_path / "plan", 44, manifest_only=True, **options)
    return ShardMaker(teacher, manifest, None, "cpu")


def test_a_step_of_the_real_teacher_is_measured(maker):
    """Its transformer runs out of memory at more than 10 samples, each with its unconditional half."""
    seen = []
    large = next(shard for shard in range(2) if maker.manifest.layout(shard).sample_shape == (4, 8, 8))

    def limited(module, _, given):
        seen.append(tuple(given["hidden_states"].shape))
        _out_of_memory(len(given["hidden_states"]) > 2 * 10)

    hook = maker.teacher.transformer.register_forward_pre_hook(limited, with_kwargs=True)
    assert rows_at_once(maker.one_step(large), torch.device("cpu"), 22) == 8  # 3 parts: 10 would be 3 as well
    assert {shape[1:] for shape in seen} == {(4, 8, 8)} and [shape[0] // 2 for shape in seen] == [2, 4, 8, 16, 12, 10]
    maker.batch_size = "auto"  # as on CUDA
    shard = maker(large)
    hook.remove()
    maker.batch_size = 22
    assert torch.allclose(torch.from_numpy(shard.states), torch.from_numpy(maker(large).states), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_a_shards_content_is_the_same_up_to_rounding(teacher, recorded, tmp_path, batch_size):
    record(teacher, tmp_path / "parts", 22, **OPTIONS, batch_size=batch_size)
    assert verify(tmp_path / "parts", progress=False).whole
    whole, parts = (TrajectoryDataset(tmp_path / name, 4).stacked() for name in ("data", "parts"))
    assert torch.equal(whole[0][:, 0], parts[0][:, 0])  # the noise
    for expected, found in zip(whole[:2], parts[:2], strict=True):
        assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
    if batch_size >= 4:
        assert contents(tmp_path / "parts") == contents(recorded)


def test_a_recording_may_go_on_with_another_batch_size(teacher, recorded, tmp_path):
    record(teacher, tmp_path / "grown", 10, **OPTIONS, batch_size=2)
    record(teacher, tmp_path / "grown", 22, **OPTIONS, batch_size=3)
    assert verify(tmp_path / "grown", progress=False).whole
    assert contents(tmp_path / "grown")["manifest.json"] == contents(recorded)["manifest.json"]


def test_parts_on_an_accelerator(teacher, recorded, tmp_path):
    expected = TrajectoryDataset(recorded, 4).stacked()[0]
    with PretendDevice() as mode:
        record(teacher.to(DEVICE), tmp_path / "there", 22, **OPTIONS, batch_size=2)
        assert "wait" not in mode.events
    found = TrajectoryDataset(tmp_path / "there", 4).stacked()[0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_auto_is_the_whole_shard_where_nothing_is_measured(maker):
    assert maker.batch_size == 22


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "many"])
def test_a_batch_size_that_holds_no_row_is_refused(teacher, tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"expected a batch_size of 1 row or more, or auto, got {batch_size!r}"):
        record(teacher, tmp_path / "data", 4, **OPTIONS, batch_size=batch_size)
    assert not (tmp_path / "data").exists()


def test_the_command_takes_a_number_or_auto(tmp_path, capsys):
    command = ["record", "--teacher", "zoo/fashion", "--num_trajectories", "4", "--guidance_scale", "1.25"]
    command += ["--solver_steps", "2", "--num_steps", "[2]", "--device", "cpu"]
    for size in ("auto", "3"):
        main([*command, "--out", f"{tmp_path}/{size}", "--batch_size", size])
        assert Manifest.read(TrajectoryDataset(tmp_path / size, 2).store).shard_size == 256
    for size, said in (("0", "batch_size of 1 row or more"), ("many", "batch_size")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--out", f"{tmp_path}/{size}", "--batch_size", size])
        assert ended.value.code == 2 and said in capsys.readouterr().err
