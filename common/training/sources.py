"""What each training learns from: a data set, opened once, and what other models make of it.

    Images               pixels (b 3 h w)                                   VQGAN
    CaptionedImages      pixels, token ids (b t), right answers (b b)       CLIP
    CaptionedCodes       token ids (b t), codes (b n) by VQGAN              DALL·E
    CaptionEmbeddings    z_i (b e), what CLIP reads of the captions         DALL·E 2's prior
    ImageEmbeddings      pixels (b 3 h w), z_i (b e) by CLIP                DALL·E 2's decoder

Each has draw(batch size, fraction completed) -> indices (b), batch(indices) -> the above, `probe`,
the model's inputs for a measurement, `sizes`, the config fields that the data decide, and `notes`,
the fingerprints of what it was computed with. Several processes draw the same batch; each gets its
part.
"""

import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import data
from mindalle.unclip import Prior
from minclip import LookAlikes, Tokenizer, same_caption

from ..run.errors import InputError
from ..run.folder import Run
from ..run.job import trained_by
from ..run.models import Models, fingerprint, read_captions
from ..run.pictures import Progress, shifted
from .distributed import leader_first, own_noise, own_part

LONGEST = 77  # most tokens in a caption, as in the published CLIP
FEW = 10_000  # pictures: with fewer, DALL·E memorises them unless they move (docs/findings.md)
COPIES = 8  # of each picture's codes, where pictures move: the first as it is
LISTED = 20  # skipped pictures that are named; all are counted


class Images:
    """Pictures to train on, `train`, and others that no training sees, `held_out`."""

    def __init__(self, run: Run, image_size: int, recipe: Any):
        self.run, self.recipe = run, recipe
        self.train, self.held_out = open_splits(run, image_size, recipe.scenes)
        self.sizes: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.first = range(min(len(self.train), recipe.batch_size))
        self.shift = getattr(recipe, "shift", 0)
        if self.shift is None:  # few pictures would be learned by heart
            few = run.job.data != "shapes" and len(self.train) < FEW and not run.job.overfit
            self.shift = image_size // 16 if few else 0
            if few:
                print(f"{len(self.train):,} pictures are few: they are moved at random by up to "
                      f"{self.shift} pixels")

    def draw(self, batch_size: int, done: float) -> Tensor:
        """Draw the indices (b) of a batch, all different if possible; the first ones to overfit."""
        count = len(self.train)
        if self.run.job.overfit:
            return torch.arange(min(count, batch_size))
        if count < batch_size:
            return torch.randint(count, (batch_size,))
        return torch.randperm(count)[:batch_size]

    def pixels(self, indices: Any) -> Tensor:
        """Fetch pictures, moved at random if they are few -> (b 3 h w)."""
        return shifted(self.train.batch(indices), self.shift)

    def texts(self, indices: Any) -> list[str]:
        """Pick a caption for each index."""
        return self.train.texts(indices, torch.default_generator)

    def batch(self, indices: Tensor) -> Tensor:
        """Fetch pictures (b 3 h w)."""
        return own_part(self.pixels(indices).to(self.run.device))[0]

    @property
    def probe(self) -> tuple[Tensor, ...]:
        return (self.train.batch(self.first).to(self.run.device),)


class CaptionedImages(Images):
    """Pictures with captions as CLIP's tokenizer, learned from them, reads them."""

    def __init__(self, run: Run, config: Any, recipe: Any):
        super().__init__(run, config.image_size, recipe)
        self.tokenizer = learn_tokenizer(run, self.train, config.vocab_size)
        self.encode, length = encoder(run, self.tokenizer, settled(run, "clip", "context_length"),
                                      self.train, self.held_out)
        self.ids = self.encode([captions[0] for captions in self.train.captions])    # (images t)
        self.look_alikes = LookAlikes(self.ids)
        self.begin = self.begin_look_alikes()
        self.sizes = {"vocab_size": self.tokenizer.vocab_size, "context_length": length}
        self.notes = {"tokenizer": self.tokenizer.fingerprint}

    def begin_look_alikes(self) -> float:
        """Return the fraction of the training after which batches hold look-alikes, 1 for never.

        They need captions that share words, unless --look-alikes is typed: a word must be in as
        many captions, on average, as a group holds. Ten class names have no look-alikes.
        """
        words = [word for caption in distinct(self.train) for word in set(caption.lower().split())]
        shared = len(words) >= self.recipe.look_alike_group * len(set(words))
        typed = "look_alikes" in self.run.job.flags.get("clip", {})
        if self.recipe.look_alikes < 1 and not shared and not typed:
            print("clip: the captions hardly share words, so no batch holds look-alikes")
            return 1.0
        return self.recipe.look_alikes

    def draw(self, batch_size: int, done: float) -> Tensor:
        """Draw a batch at random, later one of groups of look-alikes -> indices (b)."""
        indices = super().draw(batch_size, done)
        if done >= self.begin and not self.run.job.overfit and len(self.train) >= batch_size:
            indices = self.look_alikes.draw(batch_size, self.recipe.look_alike_group)
        return indices

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fetch pixels (b 3 h w), ids (b t), which captions are right for which images (b b)."""
        captions = self.texts(indices)
        pixels, ids = self.pixels(indices), self.encode(captions)
        right = same_caption(ids) | self.train.right(indices, captions)                  # (b b)
        pixels, ids = own_part(pixels.to(self.run.device), ids.to(self.run.device))
        return pixels, ids, right.to(self.run.device)

    @property
    def probe(self) -> tuple[Tensor, ...]:
        return *super().probe, self.ids[self.first].to(self.run.device)


class CaptionedCodes(Images):
    """Captions and the codes of their pictures; DALL·E never sees pixels."""

    def __init__(self, run: Run, recipe: Any):
        models = Models(run.folder, run.device)
        self.vqgan, self.tokenizer = models.get("vqgan"), models.get("tokenizer")
        config = self.vqgan.config
        super().__init__(run, config.image_size, recipe)
        self.encode, length = encoder(run, self.tokenizer, settled(run, "dalle", "text_length"),
                                      self.train, self.held_out)
        self.empty = self.encode("")[0].to(run.device)                               # (t)
        self.codes = self.encode_pictures()                                          # (copies images n)
        self.sizes = {"text_vocab": self.tokenizer.vocab_size, "text_length": length,
                      "image_vocab": config.codebook_size, "grid": config.grid}
        self.notes = {"tokenizer": self.tokenizer.fingerprint, "vqgan": fingerprint(self.vqgan)}

    @torch.no_grad()
    def encode_pictures(self) -> Tensor:
        """Compute the codes of all pictures once, int32 (copies images n).

        A picture that is moved has other codes altogether, so copies are hard to learn by heart.
        """
        copies, generator = COPIES if self.shift else 1, torch.Generator().manual_seed(0)
        count, size = len(self.train), self.vqgan.config.codebook_size
        codes = torch.empty(copies, count, self.vqgan.config.grid**2, dtype=torch.int32)
        progress = Progress("encoding pictures")
        for copy in range(copies):
            for indices in torch.arange(count).split(64):
                progress(copy * count + int(indices[0]), copies * count)
                pixels = shifted(self.train.batch(indices), self.shift if copy else 0, generator)
                found = self.vqgan.encode(pixels.to(self.run.device))                    # (b g g)
                codes[copy, indices] = rearrange(found, "b g1 g2 -> b (g1 g2)").int().cpu()
        if not 0 <= codes.min() <= codes.max() < size:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} of {size} codes")
        return codes

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch ids (b t) and codes (b n), of a random copy of each picture."""
        text = self.encode(self.texts(indices)).to(self.run.device)
        copy = torch.randint(len(self.codes), (len(indices),)) if self.shift else 0
        batch = own_part(text, self.codes[copy, indices].long().to(self.run.device))
        own_noise()
        return batch

    @property
    def probe(self) -> tuple[Tensor, ...]:
        text = self.encode(self.texts(self.first)).to(self.run.device)
        return text, self.codes[0, self.first].long().to(self.run.device)


class ImageEmbeddings(Images):
    """Pictures and their embeddings by CLIP."""

    def __init__(self, run: Run, recipe: Any):
        self.clip = Models(run.folder, run.device).get("clip")
        super().__init__(run, self.clip.config.image_size, recipe)
        self.embeddings = self.embed_pictures()                                      # (images e)
        config = self.clip.config
        self.sizes = {"image_size": config.image_size, "embed_dim": config.embed_dim}
        self.notes = {"clip": fingerprint(self.clip)}

    @torch.no_grad()
    def embed_pictures(self) -> Tensor:
        """Embed all pictures once -> unit vectors (images e)."""
        z = torch.empty(len(self.train), self.clip.config.embed_dim)
        progress = Progress("embedding pictures")
        for indices in torch.arange(len(z)).split(64):
            progress(int(indices[0]), len(z))
            features = self.clip.encode_image(self.train.batch(indices).to(self.run.device))
            z[indices] = F.normalize(features, dim=-1).cpu()
        progress(len(z), len(z))
        return z

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Fetch pixels (b 3 h w) and z_i (b e)."""
        batch = own_part(self.pixels(indices).to(self.run.device),
                         self.embeddings[indices].to(self.run.device))
        own_noise()
        return batch

    @property
    def probe(self) -> tuple[Tensor, ...]:
        pixels, z = super().probe[0], self.embeddings[self.first].to(self.run.device)
        return pixels, torch.rand(len(z)).to(z), z


class CaptionEmbeddings(ImageEmbeddings):
    """Embeddings of pictures and what CLIP reads of their captions."""

    def __init__(self, run: Run, recipe: Any):
        super().__init__(run, recipe)
        config, tokenizer = self.clip.config, Models(run.folder, run.device).clip_tokenizer()
        self.encode, _ = encoder(run, tokenizer, config.context_length, self.train, self.held_out)
        self.empty = tuple(part[0] for part in self.read([""]))
        self.sizes = {"embed_dim": config.embed_dim, "token_width": config.text_width,
                      "text_length": config.context_length}
        self.notes["tokenizer"] = tokenizer.fingerprint

    def standardise(self, prior: Prior) -> None:
        """Fit the prior's standardisation to the embeddings; apply it to those of the pictures."""
        prior.standardise_image.fit(self.embeddings)
        texts = [captions[0] for captions in self.train.captions[:4096]]
        prior.standardise_text.fit(self.read(texts)[-1])
        self.embeddings = prior.standardise_image(self.embeddings.to(self.run.device))

    def read(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Read captions with CLIP -> token features (b t d), mask (b t), z_t (b e)."""
        return read_captions(self.clip, self.encode(texts).to(self.run.device))

    def batch(self, indices: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Fetch z_i (b e) and what CLIP reads of the captions."""
        z = self.embeddings[indices].to(self.run.device)
        z, *condition = own_part(z, *self.read(self.texts(indices)))
        own_noise()
        return z, tuple(condition)

    @property
    def probe(self) -> tuple[Tensor, ...]:
        z = self.embeddings[self.first].to(self.run.device)
        return z, torch.rand(len(z)).to(z), *self.read(self.texts(self.first))


# ---- Data sets ----------------------------------------------------------------------------------


def open_splits(run: Run, image_size: int, count: int) -> tuple[data.Dataset, data.Dataset]:
    """Open the pictures to train on, of the shapes world `count` of them, and the held-out ones."""
    new = not run.datasets
    images = open_split(run, image_size, count)
    held_out = open_split(run, image_size, 128, data.held_out_split(run.job.data))
    if new and images.about:
        lines = [images.about, *describe(images, held_out)]
        print("".join(f"data: {line}\n" for line in lines), end="", flush=True)
    return images, held_out


def open_split(run: Run, image_size: int, count: int, split: str = "train") -> data.Dataset:
    """Open a split of the run's data set, once for all models; print which pictures it skips."""
    job = run.job
    if job.overfit:
        count = min(count, 1024)  # only one batch is looked at
    elif job.data != "shapes":
        count = None  # all
    key = image_size, count, split
    if key not in run.datasets:
        seed = job.seed + (split != "train")  # the held-out scenes are those that `score` judges
        with leader_first():  # who decodes a folder's pictures into a file beside the run
            images = data.load(job.data, image_size, split, count, seed,
                               Progress("reading pictures"), run.folder, job.layout, job.class_names)
        earlier = {reason for other in run.datasets.values() for reason in other.skipped}
        skipped = [reason for reason in images.skipped if reason not in earlier]
        for reason in skipped[:LISTED]:
            print(f"skipped: {reason}", file=sys.stderr)
        if skipped:
            print(f"skipped {len(skipped)}, left {len(images)} images", file=sys.stderr)
        run.datasets[key] = images
    return run.datasets[key]


def describe(images: data.Dataset, held_out: data.Dataset) -> list[str]:
    """Say how many pictures there are to train on, how many captions, and what is repeated."""
    same = len(images) == len(held_out) < 20 and images.name(0) == held_out.name(0)
    both = " (the same, as they are so few)" if same else ""
    captions = distinct(images, held_out)
    lengths = [len(caption.split()) for caption in captions]
    low, high = min(lengths), max(lengths)
    words = f"{low} to {high} words" if low < high else f"{low} word{'s' * (low != 1)}"
    equal = sum(len(answers) > len(own) for own, answers in zip(images.captions, images.answers))
    repeated = f"; {equal:,} images look like others that have other captions" if equal else ""
    return [f"{len(images):,} images to train on, {len(held_out):,} held out{both}",
            f"{len(captions):,} different captions, of {words}{repeated}"]


# ---- Captions -----------------------------------------------------------------------------------


def distinct(*sets: data.Dataset) -> list[str]:
    """List the captions of data sets, each once."""
    return list(dict.fromkeys(caption for images in sets for captions in images.captions
                              for caption in captions))


def learn_tokenizer(run: Run, images: data.Dataset, vocab_size: int) -> Tokenizer:
    """Learn the run's tokenizer from the captions, or load it where the run is resumed.

    Raises InputError if the run has another one.
    """
    path = run.folder / "tokenizer.json"
    with leader_first():
        if run.job.resume and path.exists():
            return Tokenizer.load(path)
        captions = (caption for captions in images.captions for caption in captions)
        tokenizer = Tokenizer.train(captions, vocab_size)
        if not path.exists():
            tokenizer.save(path)
        elif Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
            raise InputError(f"{path} was learned from other captions or with another "
                             "--vocab-size: name another --run")
        return tokenizer


def settled(run: Run, model: str, field: str) -> Any:
    """Return a config field if it was typed, or if the checkpoint to resume has it; else None."""
    typed = run.job.flags.get(model, {}).get(field)
    state = run.state(model) if run.job.resume else None
    return state["config"][field] if typed is None and state else typed


def batches(captions: list[str], size: int = 4096) -> Iterator[list[str]]:
    for start in range(0, len(captions), size):
        yield captions[start : start + size]


def fitting_length(tokenizer: Tokenizer, *sets: data.Dataset) -> int:
    """Return the least multiple of 4 that holds every caption: 16, to leave room, up to LONGEST."""
    longest = 0
    for batch in batches(distinct(*sets)):
        ends = tokenizer.encode(batch, LONGEST, truncate=True) == tokenizer.end          # (b t)
        longest = max(longest, ends.any(dim=0).nonzero().max().item() + 1)
    return min(LONGEST, max(16, 4 * math.ceil(longest / 4)))


def encoder(run: Run, tokenizer: Tokenizer, length: int | None,
            *sets: data.Dataset) -> tuple[partial, int]:
    """Return encode(texts) -> ids (b length), and the length; None fits it to the captions.

    Raises InputError if captions of the data sets are too long, unless they are to be cut.
    """
    length = length or fitting_length(tokenizer, *sets)
    if not run.job.truncate:
        # a model that is trained later must not refuse what an earlier one took
        limit = min(length, LONGEST) if "dalle" in trained_by(run.job.model) else length
        captions, too_long = distinct(*sets), []
        for batch in batches(captions):
            last = tokenizer.encode(batch, limit + 1, truncate=True)[:, limit]       # (b)
            too_long += [text for text, token in zip(batch, last) if token == tokenizer.end]
        if too_long:
            name = next(images.name(i) for images in sets for i, texts in enumerate(images.captions)
                        if too_long[0] in texts)
            raise InputError(f"{len(too_long)} of {len(captions)} captions take more than {limit} "
                             f"tokens, first that of {name}: {too_long[0][:60]!r}; add --truncate to "
                             "cut them, or shorten them")
    return partial(tokenizer.encode, context_length=length, truncate=run.job.truncate), length
