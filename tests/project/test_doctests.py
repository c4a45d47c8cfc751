"""Examples in docstrings run, and print what stands under them."""

import doctest
import importlib
import pkgutil

import pytest

import ardistill

MODULES = sorted(
    x.name for x in pkgutil.walk_packages(ardistill.__path__, "ardistill.") if not x.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["ardistill", *MODULES])
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
