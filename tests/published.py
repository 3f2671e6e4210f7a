"""The published layouts that the tests of the packages build, for tests of the scripts."""

import importlib.util
from pathlib import Path
from types import ModuleType


def layouts_of(package: str) -> ModuleType:
    """Load the test_pretrained.py of a package."""
    path = Path(__file__).parent / package / "test_pretrained.py"
    spec = importlib.util.spec_from_file_location(f"published_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


clip, vqgan, dalle, unclip = map(layouts_of, ("minclip", "minvqgan", "mindalle", "mindalle/unclip"))
