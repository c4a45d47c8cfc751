import base64
import html
import io
import re

import pytest
import torch
from PIL import Image

from ardistill.evaluation import Headline, exposure_bias_plot, format_table, sample_grid, write_report
from ardistill.evaluation.tables import COLUMNS
from ardistill.files.pixels import to_pictures

ROWS = [
    {"arm": "teacher", "fd": 3.25, "kid": 0.0123, "accuracy": 0.941, "nfe": 48, "macs_per_image": 1.9e9, "seeds": [0]},
    {"arm": "step_distillation", "fd": 7.5, "fd_to_teacher": 2.125, "kid": None, "accuracy": float("nan"), "nfe": 4},
]


def test_table_shows_every_number_and_a_dash_for_a_missing_one():
    lines = format_table(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-2].split() == ["teacher", "3.250", "-", "0.01230", "0.941", "48", "1,900.0", "M", "0"]
    assert lines[-1].split() == ["step", "distillation", "7.500", "2.125", "-", "-", "4", "-", "-"]
    assert "recall" not in format_table(ROWS)  # no arm has it
    assert max(map(len, lines)) <= 100


def test_rows_with_a_misspelt_key_are_refused():
    with pytest.raises(ValueError, match="expected rows with 'arm' and any of fd, "):
        format_table([{"arm": "ard", "fid": 1.0}])
    with pytest.raises(ValueError, match="expected rows with 'arm'"):
        format_table([{"fd": 1.0}])


def test_report_is_one_file_with_numbers_notes_and_pictures(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    path = tmp_path / "report.html"
    write_report(
        path,
        "A < B",
        ROWS,
        headlines=[Headline("8×", "as fast", "x < y.")],
        notes=["ARD - step distillation: -0.1 & so on"],
        plots={"errors": tmp_path / "picture.png"},
    )
    page = path.read_text(encoding="utf-8")
    for text in (
        "A &lt; B",
        "<strong>8×</strong><b>as fast</b><p>x &lt; y.</p>",
        "<td>3.250</td>",
        "<td>2.125</td>",
        "<td>-</td>",
        "-0.1 &amp; so on",
        "data:image/png;base64,",
    ):
        assert text in page
    assert "http" not in page and 'src="data:' in page  # nothing is fetched
    assert page.index("<strong>8×") < page.index("<table")  # the page opens with it


def test_the_report_explains_every_column_that_it_shows(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, "all", [{"arm": "ard"} | dict.fromkeys(COLUMNS, 1.0)])
    page = html.unescape(path.read_text(encoding="utf-8"))
    for column in COLUMNS.values():
        assert column.meaning.endswith(".") and len(column.meaning) > 40
        assert page.count(f'<abbr title="{column.meaning}">') == page.count(f"<dd>{column.meaning}</dd>") == 1
    write_report(path, "some", ROWS)
    page = html.unescape(path.read_text(encoding="utf-8"))
    assert COLUMNS["fd"].meaning in page and COLUMNS["recall"].meaning not in page


@pytest.mark.parametrize(("side", "shown"), [(8, 96), (28, 112), (32, 96), (100, 100), (512, 192)])
def test_samples_are_shown_at_a_size_that_can_be_judged(tmp_path, side, shown):
    path = tmp_path / "report.html"
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_report(path, "samples", ROWS, samples={"teacher": images, "ARD": images}, heads=["dress", "a & b"])
    page = path.read_text(encoding="utf-8")
    assert page.count(f'width="{shown}" height="{shown}"') == 4 and "a &amp; b" in page
    assert page.count('<img class="enlarged"') == (4 if side < 96 else 0)
    held = re.search(r'src="data:image/(png|webp);base64,([^"]+)"', page)
    picture = Image.open(io.BytesIO(base64.b64decode(held[2])))
    assert picture.width == min(side, 192)
    if side < 96:
        assert picture.tobytes() == to_pictures(images)[0].tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_is_written_with_the_pixels_of_each_row(tmp_path, channels):
    path = tmp_path / "grid.png"
    black, white = -torch.ones(6, channels, 8, 8), torch.ones(6, channels, 8, 8)
    sample_grid({"teacher": black, "step distillation": white}, path, columns=list("abcdef"))
    picture = Image.open(path).convert("L")
    assert picture.width > picture.height > 100
    dark = sum(value < 40 for value in picture.resize((100, 100)).tobytes()) / 10_000
    assert 0.2 < dark < 0.5  # the upper row, less the labels' share


def test_bad_grids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        sample_grid({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(3, 1, 8, 8)}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="one shape"):
        sample_grid({}, tmp_path / "grid.png")
    sample_grid({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)}, tmp_path / "heads.png", list("wxyz"))
    sample_grid({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 1, 8, 8)}, tmp_path / "grid.png", list("wx"))
    heights = [Image.open(tmp_path / name).height for name in ("heads.png", "grid.png")]
    assert heights[0] > heights[1]  # the second row has heads, too
    with pytest.raises(ValueError, match="2 column heads, got 1"):
        sample_grid({"a": torch.zeros(2, 1, 8, 8)}, tmp_path / "grid.png", columns=["x"])


def test_exposure_bias_plot_is_written(tmp_path):
    curves = {
        arm: {
            "teacher_forced": [0.01, 0.008, 0.006, 0.004],
            "free_running": [0.01, 0.02, 0.03, 0.05],
            "teacher_continued": [0.0, 0.01, 0.015, 0.02],
        }
        for arm in ("step_distillation", "ard")
    }
    exposure_bias_plot(curves, tmp_path / "bias.png")
    picture = Image.open(tmp_path / "bias.png").convert("L")
    assert picture.width > 600 and len(set(picture.tobytes())) > 20
    exposure_bias_plot(curves, tmp_path / "bias.svg")
    drawn = (tmp_path / "bias.svg").read_text()
    assert 'id="axes_1"' in drawn and 'id="axes_2"' not in drawn  # both arms are in one plot


@pytest.mark.parametrize("named", [{"free_running": [1.0]}, {"free_running": [1.0], "teacher_forced": [1.0, 2.0]}, {}])
def test_bad_curves_are_refused(tmp_path, named):
    with pytest.raises(ValueError, match="expected curves of one length"):
        exposure_bias_plot({"ard": named}, tmp_path / "bias.png")
