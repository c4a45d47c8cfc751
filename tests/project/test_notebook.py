"""The notebook is what its script says, and every cell of it runs."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TINY = "num_trajectories, num_held_out, max_steps, batch_size = 8, 8, 2, 4"
MEMORY = "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def test_the_notebook_is_made_of_the_script():
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "scripts" / "make_notebook.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.NOTEBOOK.read_text() == script.notebook(), "run python scripts/make_notebook.py"


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    parameters = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(parameters + 1, nbformat.v4.new_code_cell(TINY))
    notebook.cells.append(nbformat.v4.new_code_cell(MEMORY))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", ())]
    printed = "".join(x.text for x in outputs if x.output_type == "stream" and x.name == "stdout")
    assert "mixed_precision auto is" in printed and "milliseconds at batch" in printed
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 2
    assert (tmp_path / "runs" / "notebook" / "export" / "model_index.json").is_file()
    assert 0 < int(printed.split()[-1]) < 12e6  # KiB on Linux
