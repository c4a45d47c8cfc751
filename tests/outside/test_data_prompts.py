"""Prompts are read from every kind of file; guidance is what a student was distilled at."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from tiny import save

from ardistill import Student, StudentConfig, Teacher, TrajectoryDataset, record, sample
from ardistill.core.knots import Knots
from ardistill.evaluation import draw_samples
from ardistill.publishing import export, load
from ardistill.trajectories import load_prompts

QUIET = {"solver_steps": 4, "num_steps": (2,), "shard_size": 4, "progress": False}


def test_case_16_each_kind_of_file_is_read_as_what_it_is(tmp_path):
    expected = ["a cat, red", "the moon", "a cat, red"]
    rows = [{"prompt": x, "id": i} for i, x in enumerate(expected)]
    files = {
        "a.txt": "\ufeffa cat, red\r\n\r\nthe moon\r\na cat, red",
        "a.JSONL": "\n".join(json.dumps(row) for row in rows) + "\n\n",
        "b.jsonl": "\n".join(map(json.dumps, expected)),
        "a.json": json.dumps(rows),
        "b.json": json.dumps(expected),
        "a.csv": '\ufeffid,Prompt\r\n0,"a cat, red"\r\n1,the moon\r\n\r\n2,"a cat, red"\r\n',
        "a.tsv": "Prompt\tCategory\na cat, red\tx\nthe moon\ty\na cat, red\tz\n",
        "two.csv": 'text,caption\nx,"a cat, red"\ny,the moon\nz,"a cat, red"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": expected, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in [*files, "a.parquet"]:
        column = ":caption" if name == "two.csv" else ""
        assert load_prompts(f"{tmp_path}/{name}{column}") == expected, name


def test_case_18_guidance_is_what_it_was_distilled_at(tmp_path):
    teacher = Teacher.from_pretrained(save("flux", tmp_path / "teacher"), guidance_scale=2.0, height=16, width=16)
    record(teacher, tmp_path / "data", 4, prompts=["a cat", "a dog"], **QUIET)
    data = TrajectoryDataset(tmp_path / "data", 2)
    student = Student.from_teacher(teacher, data.student_config(history_layers=1))
    export(student, teacher, tmp_path / "export")
    pipeline = load(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    noise, condition = data.stacked(slice(2))[0][:, 0], data.condition(slice(2))
    pipeline("a cat", height=16, width=16, guidance_scale=2.0, output_type="latent")
    sample(student, noise, condition)
    for draw in (
        lambda: pipeline("a cat", height=16, width=16, guidance_scale=7.0),
        lambda: sample(student, noise, condition | {"guidance": torch.tensor([2.0, 7.0])}),
        lambda: draw_samples(student, teacher, tmp_path / "a.png", prompts=["a cat"], guidance_scale=7.0),
    ):
        with pytest.raises(ValueError, match=r"distilled at guidance 2 alone, got .*7; leave the scale out"):
            draw()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_case_18_the_ends_of_a_range_are_in_it_in_every_dtype(dtype):
    knots = Knots("flow", (1000.0, 500.0), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))
    config = StudentConfig(knots, history_layers=0, guidance_range=(1.1, 7.3), fingerprint="x")
    for scale in (1.1, 7.3):
        config.check_guidance(torch.tensor([scale], dtype=dtype))
        config.check_guidance(scale)
    for scale in (1.0, 7.5):
        with pytest.raises(ValueError, match=r"distilled at guidance 1\.1 to 7\.3"):
            config.check_guidance(torch.tensor([scale], dtype=dtype))


def test_prompts_given_in_python_are_prompts(tmp_path):
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), guidance_scale=1.0)
    for given, message in (
        ("a cat", r"list of prompts, got the text 'a cat'; give \['a cat'\]"),  # else five prompts of one letter
        (["a cat", 3], "prompt 2: expected text, got 3"),
        (["a \ud83d"], "whole characters"),
    ):
        with pytest.raises(ValueError, match=message):
            record(teacher, tmp_path / "data", 2, prompts=given, **QUIET)
    assert not (tmp_path / "data").exists()
    record(teacher, tmp_path / "data", 2, prompts=np.array(["a cat", "a dog"]), **QUIET)
    assert TrajectoryDataset(tmp_path / "data", 2).prompts == ["a cat", "a dog"]


def test_columns_that_are_no_text_are_told(tmp_path, caplog):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": [["a"], ["b"]], "n": [1, 2]}), tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match="expected a column prompt or text or caption, one alone, found n;"):
        load_prompts(str(tmp_path / "lists.parquet"))
    assert "neither text nor numbers are left out: prompt (list<" in caplog.text


def test_prompts_that_are_too_long_are_counted(tmp_path, caplog):
    teacher = Teacher.from_pretrained(save("sd3", tmp_path / "teacher"), guidance_scale=1.0)
    with caplog.at_level(logging.WARNING, logger="ardistill"):
        record(teacher, tmp_path / "data", 2, prompts=["a cat", "a red cat on the moon"], **QUIET)
    assert "1 of 2 prompts are longer than the 12 tokens of tokenizer" in caplog.text
