"""Write examples/quickstart.ipynb from examples/quickstart.py, without outputs: python scripts/make_notebook.py"""

from pathlib import Path

import jupytext
import nbformat

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def notebook() -> str:
    """The notebook's file; the cells are numbered, so that it is the same each time."""
    made = jupytext.read(SCRIPT)
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    return nbformat.writes(made, version=4) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook())
