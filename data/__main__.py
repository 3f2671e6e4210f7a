"""Look at a data set before training on it: python -m data FOLDER

It prints what was recognised, how much of it there is, what is repeated and what would be skipped,
and shows 32 pictures. It is a script, so unlike the rest of the package it imports what it needs.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import data
from common.run.errors import one_line_errors
from common.run.flags import Options, Parser, add_fields, option, positional, typed_fields
from common.run.pictures import Output, Progress, contact_sheet, to_pil
from common.training.settle import fitting
from common.training.sources import LISTED, LONGEST, batches, describe, distinct
from minclip import Tokenizer


@dataclass(frozen=True)
class LookOptions(Options):
    folder: str = positional("FOLDER")
    layout: str | None = option(None, "how the folder is laid out, if that is not recognised: "
                                f"{', '.join(data.LAYOUTS)}")
    class_names: tuple[str, ...] = option((), "what the numbers of classes stand for, where the data "
                                          "set does not say", nargs="+")
    image_size: int = option(32, "side of an image in pixels, as train.py will be told", least=8)
    out: str | None = option(None, "folder for the pictures (default: looks/ and the data's name)")


def look(options: LookOptions) -> None:
    """Print what is worth knowing before a training, and write a sheet of pictures."""
    folder, side = options.folder, options.image_size
    for model in ("clip", "vqgan", "decoder"):
        fitting(model, side)  # refuses a size that no model could have
    collection = data.read_layout(folder, options.layout, options.class_names)
    out = Output(options.out or Path("looks") / Path(folder).resolve().name, "look")
    train, held_out = (data.load(folder, side, split, layout=options.layout,
                                 progress=Progress("reading pictures"),
                                 class_names=options.class_names)
                       for split in ("train", "held-out"))
    print(f"recognised   {collection.line}")
    split, captions = describe(train, held_out)
    if any(picture.split for picture in collection.pictures):
        split += ", as the folder says"
    elif len(collection.pictures) >= 20:
        split += ", a twentieth by a hash of the names"
    print(f"split        {split}")
    print(f"captions     {captions}")
    print(f"tokens       {tokens(train, held_out)}")
    print(f"sizes        {sizes(collection)}")
    skipped = list(dict.fromkeys(train.skipped + held_out.skipped))
    print(f"skipped      {len(skipped):,}")
    for line in skipped[:LISTED]:
        print(f"    {line}")
    shown = range(min(32, len(train)))
    captions = [train.captions[i][0] for i in shown]
    out.write([], [{"file": train.name(i), "caption": text} for i, text in zip(shown, captions)],
              sheet=contact_sheet(to_pil(train.batch(shown)), captions, 8))


def tokens(*sets: data.Dataset) -> str:
    """Say how many tokens captions take with a tokenizer learned from them; which are too long."""
    captions = distinct(*sets)
    tokenizer = Tokenizer.train(captions, 640)
    lengths = [tokenizer.encode(batch, 4 * LONGEST, truncate=True) for batch in batches(captions)]
    counts = sorted(int((ids == tokenizer.end).nonzero()[0, 0]) + 1
                    for part in lengths for ids in part)
    half, long = counts[len(counts) // 2], sum(count > LONGEST for count in counts)
    refused = f", so train.py refuses {long:,} captions, or cuts them with --truncate" if long else ""
    return f"{counts[0]} to {counts[-1]}, half up to {half}; models read {LONGEST}{refused}"


def sizes(collection: data.Collection) -> str:
    """Say how large the pictures are, by their headers, and which size is the most frequent."""
    found = Counter()
    for picture in collection.pictures:
        try:
            with data.open_image(picture.open) as image:
                found[image.size] += 1
        except data.InputError:  # counted as skipped
            continue
    (width, height), count = found.most_common(1)[0]
    shorts = sorted(min(size) for size in found.elements())
    return (f"short side {shorts[0]} to {shorts[-1]}, half up to {shorts[len(shorts) // 2]}; most "
            f"frequent {width} x {height}, {count:,} times")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m data", description=__doc__.split(":")[0])
    add_fields(parser, LookOptions)
    look(LookOptions(**typed_fields(parser.parse_args(argv), LookOptions)))


if __name__ == "__main__":
    one_line_errors(main, "python -m data")
