"""The export of trajectories as Parquet files."""

import numpy as np
import pytest
from trajectories.recordings import OPTIONS

from ardistill.trajectories import (
    TrajectoryDataset,
    export_parquet,
    record,
)


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
