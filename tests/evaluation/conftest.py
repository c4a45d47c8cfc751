import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch

NAMES = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")


@pytest.fixture(scope="session")
def torch_fidelity():
    """torch-fidelity, or None if it is not installed. Request it before torchmetrics, which imports it.

    torch-fidelity imports torchvision for data sets that are not used here, and PyPI's torchvision does not load beside
    a CPU build of torch. If it fails, empty modules replace it while torch-fidelity is imported.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        modules = {name: types.ModuleType(name) for name in NAMES}
        for name, module in modules.items():
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(modules[parent], child, module)
        for dataset in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(modules["torchvision.datasets"], dataset, torch.utils.data.Dataset)
        with pytest.MonkeyPatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            return importlib.import_module("torch_fidelity")
    return importlib.import_module("torch_fidelity")
