"""Score a run by what it was trained on: print its figures, and write them to scores.json.

    "shapes"    score_shapes, score_unclip    --> Scores.add(name, value, note)
    a folder    score_folder                  --> Scores.add(name, value, note)
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import data

from ..drawing.dalle import Drawing
from ..run.errors import InputError
from ..run.folder import write_whole
from ..run.job import DATA
from ..run.models import PACKAGES, Models
from ..run.pictures import Progress
from .folder import score_folder
from .shapes import score_shapes, true_scenes
from .unclip import score_unclip


class Scores:
    """Print figures, and write them to a file as they come.

        {"settings": {"count": 512}, "printed": {"psnr": ["31.4", "dB"]}, "psnr": 31.4159}

    Raises InputError if the file is not one of ours.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.figures = path, {"settings": settings, "printed": {}}
        if path.exists() and "settings" not in path.read_text(errors="replace"):
            raise InputError(f"{path} was not written by this command, which would overwrite it: "
                             "name another --run")
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, value: float, note: str = "", percent: bool = True) -> None:
        """Add a figure, shown as a percentage unless it has another unit."""
        shown = f"{value:.1%}" if percent else f"{value:.3g}"
        self.figures[name] = round(value, 4)
        self.figures["printed"][name] = [shown, note]
        print(f"{name:28} {shown:>8} {note}", flush=True)
        content = json.dumps(self.figures, indent=1) + "\n"
        write_whole(self.path, lambda file: file.write(content.encode()))


def trained_on(models: Models) -> dict[str, Any]:
    """Return the fields of DATA that the run's models have in common; raise InputError if none."""
    names = [name for name in PACKAGES if models.has(name)]
    if not names:
        models.get("clip")  # says what is missing
    sources = []
    for name in names:
        state = models.checkpoint(name)
        job = state.get("job", state)
        sources.append({field: job[field] for field in DATA if job.get(field)})
        if "data" not in sources[-1] or sources[-1] != sources[0]:
            other = sources[-1].get("data", "other pictures")
            raise InputError(
                f"{models.files[name]} was trained on {other}, so there is nothing to score it on: "
                "score needs models that train.py trained on one data set")
    return sources[0]


def score(models: Models, drawing: Drawing, count: int = 512, draws: int = 128, best_of: int = 8,
          seed: int = 0) -> None:
    """Report every figure that the run's models and data allow, and write them to scores.json.

    count: held-out pictures; draws: captions drawn, on the shapes world `best_of` times each
    """
    source = trained_on(models)
    names = ["vqgan"] if models.has("dalle") else filter(models.has, ("clip", "vqgan", "decoder"))
    size = models.get(next(iter(names), "clip")).config.image_size
    settings = {"count": count, "draws": draws, "best_of": best_of, "seed": seed, **asdict(drawing)}
    scores = Scores(models.run / "scores.json", settings)
    if source["data"] == "shapes":
        images, captions = true_scenes(count, size, seed, models.device)
        score_shapes(models, scores.add, images, captions, drawing, draws, best_of, seed)
        if models.has("prior") and models.has("decoder"):
            asked = {split: texts[:draws] for split, texts in captions.items()}
            score_unclip(models, scores.add, images["unseen"][:draws], asked, best_of, seed)
    else:
        options = source | {"cache": models.run, "progress": Progress("reading pictures")}
        folder = options.pop("data")
        pictures = [data.load(folder, size, split, **options) for split in ("train", "held-out")]
        score_folder(models, scores.add, *pictures, drawing, count, draws, seed)
    print(f"wrote {scores.path}")
