"""Train CLIP, VQGAN and DALL·E.

    python train.py                                  all three in turn on the shapes world, then scores and pictures
    python train.py clip|vqgan|dalle [--data DIR]    one of them; `python train.py clip --help` lists its options

    captions ──► Tokenizer ──► ids ─────────┬────────────────────────┐
                                            ▼                        ▼
    images ───┬─────────────────────────► CLIP                    DALL·E ──► sample.py
              └──► VQGAN ──► codes, computed once ───────────────────▲

Every step draws its randomness from (seed, model, step) alone. So there is no generator to save, and a run that was
killed goes on from its last checkpoint to the very weights it would have had.
"""

import argparse
import csv
import dataclasses
import inspect
import math
import os
import re
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import data
import sample
from mindalle import DALLE, DALLEConfig, dalle_loss, drop_captions
from minclip import CLIP, CLIPConfig, Tokenizer, accumulated_backward, contrastive_loss, same_caption
from minvqgan import VQGAN, PatchGAN, VQGANConfig, discriminator_loss, generator_loss, reconstruction_loss

# ---- Recipes: how each model is trained. As with the configs, each line is a flag and its comment the flag's help -----


@dataclass(frozen=True)
class CLIPRecipe:
    steps: int = 2200  # optimiser steps
    batch_size: int = 128  # pairs of image and caption a step, each pair a negative for all others
    learning_rate: float = 1e-2  # highest, after the warm-up
    outer_rate: float = 0.1  # of it for embeddings, gains and biases
    weight_decay: float = 0.2  # of the matrices
    look_alikes: float = 0.3  # share of the training after which a batch holds captions that are hard to tell apart; 1: never
    accumulate: int = 1  # embed the batch in this many chunks, one at a time in memory: same gradients


@dataclass(frozen=True)
class VQGANRecipe:
    steps: int = 1800  # optimiser steps
    batch_size: int = 16  # images a step
    learning_rate: float = 5e-3  # highest, after the warm-up
    outer_rate: float = 1.0  # of it for the codebook, the first and last layers, gains and biases
    discriminator: bool = False  # train against a patch discriminator: sharper pictures, slower steps
    discriminator_start: int = 1000  # step from which the discriminator plays
    discriminator_layers: int = 2  # halvings in the discriminator; two suit pictures of 32 pixels
    adversarial_weight: float = 0.8  # strength of the discriminator relative to the reconstruction


@dataclass(frozen=True)
class DALLERecipe:
    steps: int = 2500  # optimiser steps
    batch_size: int = 48  # captioned images a step
    learning_rate: float = 4e-3  # highest, after the warm-up
    outer_rate: float = 1.0  # of it for embeddings, heads, gains and biases
    weight_decay: float = 0.05  # of the matrices
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for guidance; 1 trains without captions


SAVE_EVERY = 30  # seconds between checkpoints
NORMED_SILU = 0.6  # root of the mean square of silu(x), x normal: what an untrained decoder's last layer reads, and draws

# name -> config, recipe, share of --minutes when all three are trained, config fields that other parts of the run decide
MODELS = {
    "clip": (CLIPConfig, CLIPRecipe, 0.15, ()),
    "vqgan": (VQGANConfig, VQGANRecipe, 0.3, ()),
    "dalle": (DALLEConfig, DALLERecipe, 0.55, ("text_vocab", "image_vocab", "text_length", "grid")),
}


# ---- The three loops ------------------------------------------------------------------------------------------------


def train_clip(run: "Run", config: CLIPConfig, recipe: CLIPRecipe) -> None:
    images = run.images(config.image_size)
    tokenizer = run.tokenizer(images, config.vocab_size)
    length = run.given.get("context_length") or fitting_length(tokenizer, images)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size, context_length=length)
    check_lengths(tokenizer, images, length)
    texts = tokenizer.encode([captions[0] for captions in images.captions], length)          # (images t)

    model = CLIP(config).to(run.device)
    inside = [model.image_encoder.transformer, model.text_encoder.transformer]
    if config.stem_width:
        inside.append(model.image_encoder.patch_embedding[1:])
    optimiser = Muon(model, inside, recipe.learning_rate, recipe.outer_rate, recipe.weight_decay,
                     betas=(0.9, 0.98), eps=1e-6)
    loop = Loop(run, "clip", config, recipe, model=model, optimiser=optimiser)
    loop.expected = math.log(recipe.batch_size), f"ln {recipe.batch_size}, the loss of a guess among the batch"
    for _ in loop:
        indices = loop.batch(len(images), recipe.batch_size)
        if loop.progress() >= recipe.look_alikes and not run.args.overfit and len(images) >= recipe.batch_size:
            indices = look_alikes(texts, recipe.batch_size)
        pixels = images.batch(indices).to(run.device)                                       # (b 3 h w)
        ids = tokenizer.encode(images.texts(indices, torch.default_generator), length).to(run.device)  # (b t)

        optimiser.zero_grad()
        with run.autocast():
            if recipe.accumulate > 1:
                loss = accumulated_backward(model, pixels, ids, recipe.accumulate, same_caption(ids))
            else:
                loss = contrastive_loss(*model(pixels, ids), model.logit_scale, same_caption(ids))
        if recipe.accumulate == 1:
            loss.backward()
        optimiser.step()
        model.clamp_temperature()
        loop.log(loss)


def train_vqgan(run: "Run", config: VQGANConfig, recipe: VQGANRecipe) -> None:
    images = run.images(config.image_size)
    model = VQGAN(config).to(run.device, memory_format=torch.channels_last)
    inside = [part for half in (model.encoder, model.decoder) for part in (half.levels, half.middle)]
    optimiser = Muon(model, inside, recipe.learning_rate, recipe.outer_rate, betas=(0.9, 0.99))
    discriminator = PatchGAN(layers=recipe.discriminator_layers).to(run.device)
    optimiser_d = Muon(discriminator, [], recipe.learning_rate, betas=(0.5, 0.9))
    loop = Loop(run, "vqgan", config, recipe, model=model, optimiser=optimiser,
                discriminator=discriminator, optimiser_d=optimiser_d)
    some = images.batch(torch.arange(min(64, len(images))))
    noise = NORMED_SILU * torch.randn_like(some)
    loop.expected = reconstruction_loss(some, noise).item(), f"of noise of deviation {NORMED_SILU}, an untrained decoder's"
    for step in loop:
        pixels = images.batch(loop.batch(len(images), recipe.batch_size)).to(run.device)     # (b 3 h w)
        playing = discriminator if recipe.discriminator and step >= recipe.discriminator_start else None

        with run.autocast():
            reconstruction, quantised = model(pixels)
        loss, parts = generator_loss(pixels, reconstruction.float(), quantised.loss, model.last_weight, playing,
                                     recipe.adversarial_weight)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one odd batch must not undo many
        optimiser.step()

        if playing is not None:
            loss_d = discriminator_loss(discriminator, pixels, reconstruction.float())
            optimiser_d.zero_grad()
            loss_d.backward()
            optimiser_d.step()
            parts["discriminator"] = loss_d
        loop.log(loss, **parts)


def train_dalle(run: "Run", config: DALLEConfig, recipe: DALLERecipe) -> None:
    vqgan, tokenizer = run.load("vqgan"), run.load("tokenizer")
    images = run.images(vqgan.config.image_size)
    length = fitting_length(tokenizer, images)
    config = dataclasses.replace(config, text_vocab=tokenizer.vocab_size, text_length=length,
                                 image_vocab=vqgan.config.codebook_size, grid=vqgan.config.grid)
    codes = encode_all(vqgan, images, run)                                                   # (images n)
    empty = tokenizer.encode("", length)[0].to(run.device)                                   # (t)

    model = DALLE(config).to(run.device)
    optimiser = Muon(model, [model.blocks], recipe.learning_rate, recipe.outer_rate, recipe.weight_decay, betas=(0.9, 0.95))
    loop = Loop(run, "dalle", config, recipe, model=model, optimiser=optimiser)
    loop.extra = {"tokenizer": tokenizer.fingerprint, "vqgan": sample.fingerprint(vqgan)}
    share = config.text_loss_weight
    loop.expected = (share * math.log(config.text_vocab) + (1 - share) * math.log(config.image_vocab),
                     f"{share:g} ln {config.text_vocab} + {1 - share:g} ln {config.image_vocab}, a guess among all tokens")
    for _ in loop:
        indices = loop.batch(len(images), recipe.batch_size)
        text = tokenizer.encode(images.texts(indices, torch.default_generator), length).to(run.device)  # (b t)
        text = drop_captions(text, empty, recipe.caption_dropout)
        targets = codes[indices].long().to(run.device)                                       # (b n)

        with run.autocast():
            loss, text_loss, image_loss = dalle_loss(*model(text, targets), text, targets, share)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loop.log(loss, text=text_loss, image=image_loss)


# ---- What the loops share -------------------------------------------------------------------------------------------


class Muon(torch.optim.AdamW):
    """Step the matrices inside a network along their orthogonalised momentum, and all else as AdamW does.

    A gradient is mostly a few large directions that drown the many small ones, which tell a star from a cross.
    Orthogonalised, all directions of a matrix move alike [Jordan et al. 2024, Muon]. Scaled as in [Liu et al. 2025,
    sec. 2.2] a step is as long as AdamW's, so that rates compare. hidden: the modules whose matrices have layers
    on both sides, as embeddings and heads have not. A group's "rate" is its highest learning rate.
    """

    def __init__(self, model: nn.Module, hidden: list[nn.Module], lr: float, outer_rate: float = 1.0,
                 weight_decay: float = 0.0, **options):
        matrices = [p for module in hidden for p in module.parameters() if p.ndim > 1]
        inside = set(map(id, matrices))
        outer = [p for p in model.parameters() if id(p) not in inside]
        super().__init__([
            {"params": matrices, "rate": lr, "weight_decay": weight_decay},
            {"params": [p for p in outer if p.ndim > 1], "rate": lr * outer_rate, "weight_decay": weight_decay},
            # gains and biases have nothing to gain from being small; a temperature, alone, has far to go
            {"params": [p for p in outer if p.ndim == 1], "rate": lr * outer_rate, "weight_decay": 0.0},
            {"params": [p for p in outer if p.ndim == 0], "rate": lr, "weight_decay": 0.0},
        ], fused=True, **options)

    @torch.no_grad()
    def step(self) -> None:
        group, alike = self.param_groups[0], {}
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                if not state:  # AdamW, when restored, looks for a step in every state
                    state.update(momentum=torch.zeros_like(p), step=torch.zeros(()))
                state["momentum"].lerp_(p.grad, 0.05)
                p.grad.lerp_(state["momentum"], 0.95)
                alike.setdefault(p.shape, []).append(p)
        for matrices in alike.values():  # all of one shape at once: many small products cost more than one large
            updates = orthogonalise(torch.stack([p.grad.flatten(1) for p in matrices]))  # (k out in)
            length = 0.2 * max(updates.shape[1:]) ** 0.5
            for p, update in zip(matrices, updates):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view(p.shape), alpha=-group["lr"] * length)
                p.grad = None  # has been used; AdamW passes over what has no gradient
        super().step()


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1, (k m n) -> (k m n), by five steps of an odd polynomial of each matrix.

    As X = U S V', (a + b XX' + c (XX')²) X = U (a S + b S³ + c S⁵) V': no decomposition is needed. The five brackets
    are multiplied up first, since XX' is smaller than X.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square, one = x @ x.mT, torch.eye(x.shape[1], device=x.device)
    product = one
    for _ in range(5):
        bracket = 3.4445 * one - 4.7750 * square + 2.0315 * square @ square
        product = bracket @ product
        square = bracket @ square @ bracket  # of the X to come
    x = product @ x
    return x if wide else x.mT


def look_alikes(texts: Tensor, batch_size: int, group: int = 4) -> Tensor:
    """Draw a batch in groups, each a caption and the few that share most of its tokens: texts (n t) -> indices (b).

    Among captions drawn evenly, colours and places tell each from all others: the loss is near zero before a star is told
    from a cross. It has to be learned from captions that differ in nothing else, and that a star above a cross is not a
    cross above a star, from those that differ in their order alone. Few do: hence a large pool and small groups.
    """
    pool = torch.randperm(len(texts))[: 2**16]  # bounded: a step costs the same on a data set of any size
    texts, group = texts[pool], min(group, batch_size)                                       # (n t)
    first = texts[: math.ceil(batch_size / group)]                                           # (k t)
    said = torch.zeros(int(texts.max()) + 1, len(first))                                     # (v k) which tokens
    said[first, torch.arange(len(first)).unsqueeze(1)] = 1
    shared = F.embedding_bag(texts, said, mode="sum")                                        # (n k) how many in common
    shared += torch.rand(len(texts), 1)  # ties fall by chance
    # one number for each caption: to compare all its tokens took 40 times as long
    number = (texts * torch.randint(2**40, texts.shape[1:])).sum(dim=1)                      # (n)
    shared[number.unsqueeze(1) == number[: len(first)]] = -1  # of copies there is nothing to learn
    others = shared.topk(group - 1, dim=0).indices                                           # (group-1 k)
    chosen = torch.cat([torch.arange(len(first)).unsqueeze(0), others])                      # (group k)
    return pool[rearrange(chosen, "group k -> (k group)")][:batch_size]


def fitting_length(tokenizer: Tokenizer, images: data.Dataset) -> int:
    """Return the least multiple of 4 that holds every caption: from 16, for prompts to come, to CLIP's 77."""
    ids = tokenizer.encode([caption for captions in images.captions for caption in captions], 77, truncate=True)
    longest = (ids == tokenizer.end).any(dim=0).nonzero().max().item() + 1
    return min(77, max(16, 4 * math.ceil(longest / 4)))


def check_lengths(tokenizer: Tokenizer, images: data.Dataset, length: int) -> None:
    """Refuse captions that are too long before the first step and not in the middle of the night."""
    for captions in images.captions:
        tokenizer.encode(captions, length)


@torch.no_grad()
def encode_all(vqgan: VQGAN, images: data.Dataset, run: "Run") -> Tensor:
    """Compute the codes of all images once, int32 (images n): DALL·E trains on them, never on pixels."""
    codes = torch.empty(len(images), vqgan.config.grid**2, dtype=torch.int32)
    for indices in torch.arange(len(images)).split(64):
        codes[indices] = rearrange(vqgan.encode(images.batch(indices).to(run.device)), "b g1 g2 -> b (g1 g2)").int().cpu()
    return codes


class Run:
    """Hold where a run lives, and what its three trainings have in common: data, tokenizer, device, precision."""

    def __init__(self, args: argparse.Namespace, given: dict):
        self.args, self.given = args, given  # given: the flags of config and recipe that were typed
        name = "shapes" if args.data == "shapes" else Path(args.data).resolve().name
        self.dir = Path(args.run or f"runs/{name}{'-overfit' if args.overfit else ''}")
        self.device = sample.pick_device(args.device)
        bf16 = args.precision == "bf16" or (args.precision == "auto" and fast_bf16(self.device))
        self.autocast = (lambda: torch.autocast(self.device, torch.bfloat16)) if bf16 else nullcontext
        self.precision = "bf16" if bf16 else "fp32"
        self.datasets = {}

    def images(self, image_size: int) -> data.Dataset:
        if image_size not in self.datasets:
            few = 1024 if self.args.overfit else None  # one batch is all that is looked at
            self.datasets[image_size] = data.load(self.args.data, image_size, count=few, seed=self.args.seed)
            skipped = self.datasets[image_size].skipped
            for reason in skipped:
                print(f"skipped: {reason}", file=sys.stderr)
            if skipped:
                print(f"skipped {len(skipped)}, left {len(self.datasets[image_size])} images", file=sys.stderr)
        return self.datasets[image_size]

    def tokenizer(self, images: data.Dataset, vocab_size: int) -> Tokenizer:
        """Return the run's tokenizer, trained on the captions if the run has none yet."""
        path = self.dir / "tokenizer.json"
        if path.exists():
            return Tokenizer.load(path)
        tokenizer = Tokenizer.train((caption for captions in images.captions for caption in captions), vocab_size)
        self.dir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
        return tokenizer

    def load(self, name: str):
        return sample.Models(self.dir, self.device).get(name)


class Loop:
    """Iterate over the steps of one training: seed, schedule, progress, log, checkpoint, clean stop, resume."""

    def __init__(self, run: Run, name: str, config, recipe, **parts: nn.Module | torch.optim.Optimizer):
        self.run, self.name, self.config, self.recipe, self.parts = run, name, config, recipe, parts
        self.path = run.dir / f"{name}.pt"
        self.step, self.seconds, self.expected, self.extra, self.stopping = 0, 0.0, None, {}, False
        if run.args.resume and self.path.exists():
            self.restore()
        self.trim_log()
        count = sum(p.numel() for p in parts["model"].parameters())
        print(f"{name}: {count:,} parameters, {run.device}, {run.precision}", flush=True)

    def batch(self, count: int, batch_size: int) -> Tensor:
        """Draw the indices (b) of a batch, all different while there are enough; always the same with --overfit."""
        if self.run.args.overfit:
            return torch.arange(min(count, batch_size))
        return torch.randperm(count)[:batch_size] if count >= batch_size else torch.randint(count, (batch_size,))

    def progress(self) -> float:
        """Return how much of the training is done, from 0 to 1: of the minutes or the steps that were typed, whichever is
        more, or else of the recipe's steps.
        """
        minutes = self.run.minutes[self.name]
        by_minutes = self.seconds / (60 * minutes) if minutes else 0.0
        by_steps = 0.0 if minutes and "steps" not in self.run.given else self.step / self.recipe.steps
        return max(by_minutes, by_steps)

    def __iter__(self):
        def stop(*_):
            self.stopping = True
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

        before = signal.signal(signal.SIGINT, stop)
        self.started = self.saved = self.shown = time.monotonic()
        first_step, first_seconds = self.step, self.seconds
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.train()
        while self.progress() < 1 and not self.stopping:
            torch.manual_seed(stable_seed(self.run.args.seed, self.name, self.step))
            self.set_learning_rate()
            yield self.step
            self.step += 1
            self.seconds = first_seconds + time.monotonic() - self.started
            speed = (self.step - first_step) / (self.seconds - first_seconds)
            self.show(speed)
            if time.monotonic() - self.saved > SAVE_EVERY:
                self.save()
                self.saved = time.monotonic()
        self.show(speed=None)
        self.save()
        signal.signal(signal.SIGINT, before)
        if self.stopping:
            raise SystemExit(f"\nstopped at step {self.step} and saved {self.path}; go on with --resume")

    def set_learning_rate(self) -> None:
        """Warm up over the first twentieth, then fall along a straight line to zero [Bergsma et al. 2025]."""
        done = self.progress()
        factor = min(max(done, 1 / self.recipe.steps) / 0.05, (1 - done) / 0.95)
        for part in self.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["lr"] = group["rate"] * factor

    def log(self, loss: Tensor, **parts: Tensor) -> None:
        """Remember the losses of this step; every tenth goes to log.csv, so that the host seldom waits for a GPU."""
        self.loss = loss.detach()
        if self.step == 0 and self.expected:
            value, why = self.expected
            print(f"{self.name}: first loss {self.loss.item():.3f}, expected {value:.3f} = {why}", flush=True)
        if self.step % 10 == 0:
            self.run.dir.mkdir(parents=True, exist_ok=True)
            path = self.run.dir / "log.csv"
            new = not path.exists()
            with open(path, "a", newline="") as file:
                if new:
                    csv.writer(file).writerow(["model", "step", "seconds", "loss", "parts"])
                details = " ".join(f"{name}={value.item():.5f}" for name, value in parts.items())
                csv.writer(file).writerow([self.name, self.step, f"{self.seconds:.1f}", f"{self.loss.item():.5f}", details])

    def show(self, speed: float | None) -> None:
        """Rewrite the progress line on a terminal; in a log print it every half minute. None ends it."""
        now, live = time.monotonic(), sys.stdout.isatty()
        if speed and now - self.shown < (0.5 if live else 30):
            return
        self.shown = now
        if not hasattr(self, "loss"):
            return
        done = max(self.progress(), 1e-9)
        left = f"{self.seconds * (1 - done) / done:.0f} s left" if speed else f"{self.seconds:.0f} s in all"
        rate = f"{speed:.1f} steps/s  " if speed else ""
        line = f"{self.name}: step {self.step}  loss {self.loss.item():.4f}  {rate}{left}"
        print(f"\r{line:<79}" if live else line, end="\n" if not (live and speed) else "", flush=True)

    def save(self) -> None:
        """Write the checkpoint beside the old one and rename it over: a crash leaves the one or the other whole."""
        state = {
            "kind": self.name, "config": dataclasses.asdict(self.config), "weights": self.parts["model"].state_dict(),
            "recipe": dataclasses.asdict(self.recipe), "seed": self.run.args.seed, "data": self.run.args.data,
            "step": self.step, "seconds": self.seconds, **self.extra,
            "training": {k: v.state_dict() for k, v in self.parts.items() if k != "model"},
        }
        self.run.dir.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".pt.new")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def restore(self) -> None:
        """Take up the run where its checkpoint left it."""
        state = torch.load(self.path, weights_only=True, map_location=self.run.device)
        self.parts["model"].load_state_dict(state["weights"])
        for name, part in state["training"].items():
            self.parts[name].load_state_dict(part)
        self.step, self.seconds = state["step"], state["seconds"]

    def trim_log(self) -> None:
        """Drop this model's log lines from the present step on: a run that was killed left them, and they come again."""
        log = self.run.dir / "log.csv"
        if log.exists():
            with open(log, newline="") as file:
                header, *rows = csv.reader(file)
            rows = [row for row in rows if len(row) == 5 and (row[0] != self.name or int(row[1]) < self.step)]
            temporary = log.with_suffix(".csv.new")
            with open(temporary, "w", newline="") as file:
                csv.writer(file).writerows([header, *rows])
            os.replace(temporary, log)


def stable_seed(*parts) -> int:
    """Mix anything printable into a seed below 2^63 that is the same on every machine, unlike Python's hash()."""
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def fast_bf16(device: str) -> bool:
    """Tell whether bf16 pays: on GPUs that compute in it and CPUs with AMX; others only emulate it, more slowly."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


# ---- The command line -----------------------------------------------------------------------------------------------


def comments(cls: type) -> dict[str, str]:
    """Read the comment behind each field of a dataclass: {field: comment}."""
    return dict(re.findall(r"^ {4}(\w+): .*?# (.+)$", inspect.getsource(cls), re.MULTILINE))


def add_fields(parser: argparse.ArgumentParser, cls: type, without: tuple[str, ...]) -> None:
    """Give the parser a flag for each field of a dataclass."""
    group, helps = parser.add_argument_group(cls.__name__), comments(cls)
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", f"{helps[field.name]} (default: {field.default})".replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif isinstance(field.default, tuple):
            group.add_argument(flag, type=int, nargs="*", default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(flag, type=type(field.default), default=argparse.SUPPRESS, help=text)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """Read the command line  ->  the common options, and the fields of config and recipe that were typed."""
    argv = sys.argv[1:] if argv is None else argv
    model = argv[0] if argv and argv[0] in MODELS else None
    parser = sample.Parser(prog="python train.py", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", choices=list(MODELS), help="the model to train; all three when left out")
    parser.add_argument("--data", default="shapes", help="'shapes', or a folder of captioned images (default: shapes)")
    parser.add_argument("--run", help="folder of the run (default: runs/ and the name of the data)")
    parser.add_argument("--minutes", type=float,
                        help="end after this time instead of the recipe's steps; with --steps, at whichever is sooner")
    parser.add_argument("--resume", action="store_true", help="go on where the run's checkpoints end")
    parser.add_argument("--overfit", action="store_true", help="train on one batch over and over: the loss must go to almost nothing")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="(default: auto)")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"],
                        help="auto takes bf16 where the hardware multiplies in it (default: auto)")
    common = {action.dest for action in parser._actions}
    if model:
        config, recipe, _, decided = MODELS[model]
        add_fields(parser, config, decided)
        add_fields(parser, recipe, ())
    else:
        parser.add_argument("--steps", type=int, default=argparse.SUPPRESS, help="optimiser steps of each model")
    args = parser.parse_args(argv)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k not in common}
    if args.minutes is not None and args.minutes <= 0 or given.get("steps", 1) < 1:
        parser.error("--minutes and --steps must be above 0")
    return args, given


def choose(run: Run, name: str) -> tuple:
    """Settle config and recipe of a model: the checkpoint's when resuming, or else the defaults; then the typed flags."""
    config_class, recipe_class, *_ = MODELS[name]
    config, recipe, path = {}, {}, run.dir / f"{name}.pt"
    if path.exists():
        if not run.args.resume:
            raise ValueError(f"{path} exists: add --resume to go on with it, name another --run, or delete it")
        saved = torch.load(path, weights_only=True, mmap=True)
        config, recipe = saved["config"], saved["recipe"]
        was = {**config, **recipe, "seed": saved["seed"], "data": saved["data"]}
        for flag, value in {**run.given, "seed": run.args.seed, "data": run.args.data}.items():
            if flag != "steps" and was.get(flag, value) != value:
                raise ValueError(f"{path} was trained with --{flag.replace('_', '-')} {was[flag]}, not {value}: "
                                 f"leave the flag out to resume it, or name another --run")
        run.given.setdefault("context_length", config.get("context_length"))

    def fill(cls, saved):
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{**saved, **{k: v for k, v in run.given.items() if k in names and v is not None}})

    return fill(config_class, config), fill(recipe_class, recipe)


def main(argv: list[str] | None = None) -> None:
    args, given = parse(argv)
    run = Run(args, given)
    names = [args.model] if args.model else list(MODELS)
    run.minutes = {name: args.minutes and args.minutes * (MODELS[name][2] if len(names) > 1 else 1) for name in names}
    chosen = {name: choose(run, name) for name in names}  # all three before the first starts: mistakes show at once
    for name, train in (("clip", train_clip), ("vqgan", train_vqgan), ("dalle", train_dalle)):
        if name in names:
            torch.manual_seed(stable_seed(args.seed, name))
            train(run, *chosen[name])
            sample.draw_losses(run.dir)
    if len(names) == len(MODELS) and not args.overfit:
        sample.finish(run.dir, args.data, args.device, args.seed)


if __name__ == "__main__":
    sample.one_line_errors(main)
