"""The published layouts that tests of packages and of scripts build, by package."""

import importlib.util
from pathlib import Path
from types import ModuleType

import published_clip as clip  # noqa: F401
import published_vqgan as vqgan  # noqa: F401


def layouts_of(package: str) -> ModuleType:
    """Load the test_pretrained.py of a package, which builds its layouts itself."""
    path = Path(__file__).parent / package / "test_pretrained.py"
    spec = importlib.util.spec_from_file_location(f"published_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dalle, unclip = map(layouts_of, ("mindalle", "mindalle/unclip"))
