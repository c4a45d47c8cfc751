import importlib
import pkgutil

import pytest

import ardistill

MODULES = sorted(module.name for module in pkgutil.walk_packages(ardistill.__path__, "ardistill."))


@pytest.mark.parametrize("name", ["ardistill", *MODULES])
def test_every_module_imports(name):
    importlib.import_module(name)
