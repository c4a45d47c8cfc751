"""The export of trajectories as Parquet files."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard
from trajectories.recordings import OPTIONS, contents

from ardistill.trajectories import TrajectoryDataset, export_parquet, info, record, repair, verify


@pytest.mark.parametrize("kind", ["labels", "prompts"])
def test_the_parquet_export_is_what_datasets_loads(teacher, recorded, with_text, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    folder = recorded if kind == "labels" else with_text[1]
    data = TrajectoryDataset(folder, 4)
    assert export_parquet(folder, tmp_path / "out", progress=False) == len(data)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.with_format("numpy")
    assert len(rows) == len(data) and list(rows["index"]) == list(range(len(data)))
    for i in (0, len(data) - 1):
        row, item = rows[i], data[i]
        assert np.array_equal(row["states"].reshape(-1, *row["shape"]), item["states"].numpy())
        assert np.array_equal(row["denoised"].reshape(-1, *row["shape"]), item["denoised"].numpy())
        known = data.prompts[int(data.labels[i])] if kind == "prompts" else int(data.labels[i])
        assert row["prompt" if kind == "prompts" else "label"] == known
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    export_parquet(folder, tmp_path / "out", progress=False)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    record(teacher, tmp_path / "other", 4, **OPTIONS)
    with pytest.raises(ValueError, match="to be empty or to hold this export"):
        export_parquet(tmp_path / "other", tmp_path / "out", progress=False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_parquet_form_trains_like_the_recording(teacher, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("ardistill.trajectories.parquet.ROW_GROUP", 3000)  # several row groups in a shard
    record(teacher, tmp_path / "data", 22, **OPTIONS, dtype=dtype, guidance_range=(1.0, 3.0))
    export_parquet(tmp_path / "data", tmp_path / "out", progress=False)
    assert pq.ParquetFile(tmp_path / "out/data/train-00000-of-00006.parquet").num_row_groups > 1
    before, after = (TrajectoryDataset(tmp_path / name, 4) for name in ("data", "out"))
    rows = torch.tensor([21, 0, 7, 7])
    for (name, x), y in zip(before.batch(rows).items(), after.batch(rows).values(), strict=True):
        same = x.items() if name == "condition" else [(name, x)]
        assert all(torch.equal(value, y[key] if name == "condition" else y) for key, value in same)
    assert before.student_config() == after.student_config()
    assert verify(tmp_path / "out", progress=False) == verify(tmp_path / "data", progress=False)
    found, there = info(tmp_path / "out"), info(tmp_path / "data")
    assert found["num_present"] == 6 and found["bytes"] > there["bytes"] / 2
    assert export_parquet(tmp_path / "out", tmp_path / "again", progress=False) == 22  # of the form itself
    assert contents(tmp_path / "again/data") == contents(tmp_path / "out/data")


def test_the_parquet_form_of_prompts_trains_like_the_recording(with_text, tmp_path):
    export_parquet(with_text[1], tmp_path / "out", progress=False)
    before, after = TrajectoryDataset(with_text[1], 4), TrajectoryDataset(tmp_path / "out", 4)
    assert before.prompts == after.prompts
    for name, value in before[3]["condition"].items():
        assert torch.equal(value, after[3]["condition"][name])
    assert after.manifest.teacher == "teacher" and str(tmp_path.parent) not in (tmp_path / "out/README.md").read_text()


def test_a_damaged_or_misplaced_parquet_file_is_refused(recorded, teacher, tmp_path):
    export_parquet(recorded, tmp_path / "out", progress=False)
    first, second = (tmp_path / f"out/data/train-0000{i}-of-00006.parquet" for i in (0, 1))
    whole = first.read_bytes()

    def refused(data: bytes, said: str) -> None:
        first.write_bytes(data)
        with pytest.raises(ValueError, match=said):
            TrajectoryDataset(tmp_path / "out", 4)[0]
        assert list(verify(tmp_path / "out", progress=False).broken) == [f"data/{first.name}"]

    refused(
        whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:], "cannot be read as a shard .*; export the recording"
    )
    refused(whole[: len(whole) // 2], "cannot be read as a shard")
    refused(second.read_bytes(), "belongs to another recording or another place")
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name} is missing"):
        TrajectoryDataset(tmp_path / "out", 4)
    with pytest.raises(ValueError, match="is the Parquet form of a recording; repair the recording"):
        repair(teacher, tmp_path / "out", progress=False)


def test_the_card_names_the_columns(recorded, with_text, tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, folder in (("labels", recorded), ("prompts", with_text[1])):
        export_parquet(folder, tmp_path / name, progress=False, license={"license": "mit"})
        card = DatasetCard.load(tmp_path / name / "README.md").data
        assert card.license == "mit" and "ardistill" in card["tags"]
        named = datasets.Features._from_yaml_list(card["dataset_info"]["features"])
        stored = pq.read_schema(next((tmp_path / name / "data").iterdir()))
        assert named == datasets.Features.from_arrow_schema(stored)
