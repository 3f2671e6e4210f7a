"""Look at a data set before training on it: `python -m data DIR`.

It prints what was recognised, how much of it there is, what is repeated and what would be skipped, and shows 32 pictures.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import data
from minclip import Tokenizer

from .training.sources import LONGEST, SHOWN, batches, describe, distinct
from .run.errors import one_line_errors
from .run.flags import Options, Parser, add_fields, option, typed_fields
from .run.pictures import Output, Progress, contact_sheet, to_pil
from .training.recipes import fitting


@dataclass(frozen=True)
class Look(Options):
    layout: str | None = option(None, f"how the folder is laid out, if it is not recognised: {', '.join(data.LAYOUTS)}")
    class_names: tuple[str, ...] = option((), "what the numbers of the classes stand for, where the data set does not say", nargs="+")
    image_size: int = option(32, "side of an image in pixels, as train.py will be told", least=8)
    out: str | None = option(None, "folder for the sheet of pictures (default: looks/ and the name of the data)")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m data", description="Say what train.py would find in a folder of captioned pictures.")
    parser.add_argument("folder", help="the folder")
    add_fields(parser, Look)
    args = parser.parse_args(argv)
    look(args.folder, Look(**typed_fields(args, Look)))


def look(folder: str, how: Look) -> None:
    """Print about a folder what is worth knowing before a training, and write a sheet of its pictures."""
    for model in ("clip", "vqgan", "decoder"):
        fitting(model, how.image_size)  # refuses a size that no model could have
    collection = data.read_layout(folder, how.layout, how.class_names)
    out = Output(how.out or Path("looks") / Path(folder).resolve().name, "look")
    settings = {"progress": Progress("reading pictures"), "layout": how.layout, "class_names": how.class_names}
    train, held_out = (data.load(folder, how.image_size, split, **settings) for split in ("train", "held-out"))
    say("recognised", collection.line)
    split, captions = describe(train, held_out)
    own = any(picture.split for picture in collection.pictures)
    by_hash = "" if len(collection.pictures) < 20 else ", a twentieth by a hash of the names"
    say("split", split + (", as the folder says" if own else by_hash))
    say("captions", captions)
    say("tokens", tokens(train, held_out))
    say("repeated", repeated(train, held_out))
    say("sizes", sizes(collection))
    skipped = train.skipped + [line for line in held_out.skipped if line not in train.skipped]
    say("skipped", f"{len(skipped):,}")
    for line in skipped[:SHOWN]:
        print(f"    {line}")
    some = range(min(32, len(train)))
    sheet = contact_sheet(to_pil(train.batch(some)), [train.captions[i][0] for i in some], 8)
    out.write([], [{"file": train.name(i), "caption": train.captions[i][0]} for i in some], sheet=sheet)


def say(what: str, text: str) -> None:
    print(f"{what:12} {text}", flush=True)


def repeated(*sets: data.Dataset) -> str:
    """Say which captions have several images, and which images look like others that have other captions."""
    counts = Counter(caption for images in sets for captions in images.captions for caption in captions)
    shared = [caption for caption, count in counts.items() if count > 1]
    alike = [images.name(i) for images in sets for i in range(len(images)) if len(images.answers[i]) > len(images.captions[i])]
    return (f"captions with several images: {len(shared):,}" + (f", first {shared[0]!r}" if shared else "")
            + f"; images that look like others with other captions: {len(alike):,}" + (f", first {alike[0]}" if alike else ""))


def tokens(*sets: data.Dataset) -> str:
    """Say how many tokens captions take with a tokenizer learned from them, and which are too long."""
    captions = distinct(*sets)
    tokenizer = Tokenizer.train(captions, 640)
    lengths = [tokenizer.encode(batch, 4 * LONGEST, truncate=True) for batch in batches(captions)]
    counts = sorted(int((ids == tokenizer.end).nonzero()[0, 0]) + 1 for part in lengths for ids in part)
    long = sum(count > LONGEST for count in counts)
    text = f"{counts[0]} to {counts[-1]}, half of the captions up to {counts[len(counts) // 2]}; models read {LONGEST}"
    return text + (f", so train.py refuses {long:,} captions, or cuts them with --truncate" if long else "")


def sizes(collection: data.Collection) -> str:
    """Say how large the pictures are, from their headers, and which size is the most frequent."""
    found = Counter()
    for picture in collection.pictures:
        try:
            with data.open_image(picture.source) as image:
                found[image.size] += 1
        except data.InputError:  # counted as skipped
            continue
    (width, height), count = found.most_common(1)[0]
    shorts = sorted(min(size) for size in found.elements())
    return (f"short side {shorts[0]} to {shorts[-1]}, half of them up to {shorts[len(shorts) // 2]}; most frequent {width} x {height}, "
            f"{count:,} times")


def run() -> None:
    one_line_errors(main, "python -m data")
