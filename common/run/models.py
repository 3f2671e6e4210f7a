"""A run's models, loaded when first asked for, each paired with the tokenizer and the codes that it was trained with."""

import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import data
import mindalle
import mindalle.unclip
import minclip
import minvqgan

from .errors import InputError
from .flags import command
from .pictures import Progress, read_images
from ..training.loop import shifted

PACKAGES = {"clip": minclip, "vqgan": minvqgan, "dalle": mindalle, "prior": mindalle.unclip, "decoder": mindalle.unclip}


def fingerprint(model: nn.Module) -> str:
    """Name a model's weights in 12 hexadecimal digits."""
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


COPIES = 8  # of each picture, where they are moved: the first as it is


@torch.no_grad()
def encode_all(vqgan: minvqgan.VQGAN, images: data.Dataset, device: str, shift: int = 0) -> Tensor:
    """Compute the codes of all images, int32 (copies images n): DALL·E trains on them and never sees pixels.

    Moved by up to `shift` pixels, an image has other codes altogether, so several copies of it are hard to learn by heart.
    """
    copies, generator = COPIES if shift else 1, torch.Generator().manual_seed(0)
    codes, progress = torch.empty(copies, len(images), vqgan.config.grid**2, dtype=torch.int32), Progress("encoding pictures")
    for copy in range(copies):
        for indices in torch.arange(len(images)).split(64):
            progress(copy * len(images) + int(indices[0]), copies * len(images))
            pixels = shifted(images.batch(indices), shift if copy else 0, generator).to(device)
            codes[copy, indices] = rearrange(vqgan.encode(pixels), "b g1 g2 -> b (g1 g2)").int().cpu()
    if not 0 <= codes.min() <= codes.max() < vqgan.config.codebook_size:
        raise ValueError(f"the quantiser gives codes from {codes.min()} to {codes.max()}, of {vqgan.config.codebook_size}")
    return codes


@torch.no_grad()
def reconstruct(vqgan: minvqgan.VQGAN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode images (b 3 h w), 64 at a time -> reconstructions (b 3 h w) in [-1, 1], codes (b g g)."""
    codes = torch.cat([vqgan.encode(part) for part in images.split(64)])
    return torch.cat([vqgan.decode(part) for part in codes.split(64)]).clamp(-1, 1), codes


class Models:
    """Load models from a run's folder, or from files named instead of its own.

    These may be published weights. A published CLIP brings its own tokenizer, minDALL-E's folder its tokenizer and its VQGAN.
    """

    def __init__(self, run: str | Path, device: str, preset: str | None = None, merges: str | None = None, **files: str | None):
        self.run, self.device, self.preset, self.merges, self.loaded = Path(run), device, preset, merges, {}
        if files.get("dalle") and (Path(files["dalle"]) / "stage1_last.ckpt").exists():
            files["vqgan"] = files.get("vqgan") or files["dalle"]
        self.files = {name: Path(files.get(name) or self.run / default) for name, default in (
            *((model, f"{model}.pt") for model in PACKAGES), ("tokenizer", "tokenizer.json"))}

    def has(self, name: str) -> bool:
        return self.files[name].exists()

    def get(self, name: str) -> Any:
        """Return a model, or the run's tokenizer. Raises InputError if its file is missing or does not fit."""
        if name not in self.loaded:
            path, package = self.files[name], PACKAGES.get(name)
            if not path.exists():
                model = "clip" if name == "tokenizer" else name
                raise InputError(f"{path} is missing: copy one there, name another --run, or train it: "
                                 f"{command('train.py', model, '--run', self.run)}")
            options = {"preset": self.preset} if name == "clip" else {}
            self.loaded[name] = package.load(path, self.device, **options) if package else minclip.Tokenizer.load(path)
        return self.loaded[name]

    def checkpoint(self, name: str) -> dict[str, Any]:
        """Return the checkpoint that train.py wrote, its weights mapped from the file; {} for published weights."""
        key, files = f"{name} checkpoint", PACKAGES[name].pretrained
        if key not in self.loaded:
            if not self.has(name):
                self.get(name)  # says what is missing
            content = files.read(files.locate(self.files[name]))
            self.loaded[key] = content if isinstance(content, dict) and content.get("kind") == name else {}
        return self.loaded[key]

    def clip_tokenizer(self) -> minclip.Tokenizer:
        """Return CLIP's tokenizer: --merges, or what lies beside a --clip, or the run's own."""
        clip, path = self.get("clip"), self.files["clip"]
        if "clip_tokenizer" not in self.loaded:
            folder = path if path.is_dir() else path.parent
            beside = folder != self.run and any((folder / name).exists() for name in minclip.tokenizer.FILES)
            tokenizer = minclip.Tokenizer.load(self.merges or folder) if self.merges or beside else self.get("tokenizer")
            if tokenizer.vocab_size != clip.config.vocab_size:
                raise InputError(f"{path} knows {clip.config.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: "
                                 f"name the one it was trained with by --merges, as bpe_simple_vocab_16e6.txt.gz")
            if (known := self.checkpoint("clip").get("tokenizer")) not in (None, tokenizer.fingerprint):
                raise InputError(f"{path} was trained with another tokenizer than {self.files['tokenizer']} "
                                 f"(fingerprint {known}, not {tokenizer.fingerprint}): name the right --tokenizer")
            self.loaded["clip_tokenizer"] = tokenizer
        return self.loaded["clip_tokenizer"]

    def dalle(self) -> tuple[mindalle.DALLE, minclip.Tokenizer | mindalle.MinDALLETokenizer]:
        """Return DALL·E and its tokenizer, having made sure that this and the VQGAN are those it was trained with."""
        model, vqgan, path = self.get("dalle"), self.get("vqgan"), self.files["dalle"]
        if vqgan.config.codebook_size != model.config.image_vocab:
            raise InputError(f"{path} draws in {model.config.image_vocab} codes, {self.files['vqgan']} has "
                             f"{vqgan.config.codebook_size}: name the right --vqgan")
        if "dalle_tokenizer" not in self.loaded:
            if known := self.checkpoint("dalle"):
                for name, found in (("tokenizer", self.get("tokenizer").fingerprint), ("vqgan", fingerprint(vqgan))):
                    if known.get(name, found) != found:
                        raise InputError(f"{path} was trained with another {name} than {self.files[name]} (fingerprint "
                                         f"{known[name]}, not {found}): its codes mean nothing here; name the right --{name}, "
                                         "or another --run")
            folder = path if path.is_dir() else path.parent
            self.loaded["dalle_tokenizer"] = self.get("tokenizer") if known else mindalle.MinDALLETokenizer.load(folder / "tokenizer")
        return model, self.loaded["dalle_tokenizer"]

    def unclip(self, name: str) -> mindalle.unclip.Prior | mindalle.unclip.Decoder:
        """Return the prior or the decoder, having made sure that CLIP is the one whose embeddings it was trained on."""
        model, clip, path = self.get(name), self.get("clip"), self.files[name]
        if f"{name} fits" not in self.loaded:
            known = self.checkpoint(name).get("clip")
            if known and known != (found := fingerprint(clip)):
                raise InputError(f"{path} was trained with another CLIP than {self.files['clip']} (fingerprint {known}, not "
                                 f"{found}): its embeddings mean nothing here; name the right --clip, or another --run")
            sizes = {"embed_dim": clip.config.embed_dim, "token_width": clip.config.text_width,
                     "text_length": clip.config.context_length}
            for field, size in sizes.items():
                if (needed := getattr(model.config, field, size)) != size:  # a decoder reads no text
                    raise InputError(f"{path} needs a CLIP of {field} {needed}, {self.files['clip']} has {size}: name the right --clip")
            self.loaded[f"{name} fits"] = True
        return model

    def encode(self, name: str, tokenizer: Any, texts: list[str], length: int) -> Tensor:
        """Encode texts for a model -> ids (b t). Long ones are cut if the model was trained with --truncate."""
        truncate = {"truncate": True} if self.checkpoint(name).get("job", {}).get("truncate") else {}
        return tokenizer.encode(texts, length, **truncate).to(self.device)

    def read_images(self, paths: Iterable[str | Path]) -> tuple[list[str], Tensor]:
        """Read pictures as CLIP was trained to see them -> their names, images (b 3 side side)."""
        def as_published(path: str | Path) -> Tensor:
            with data.open_image(path) as image:
                return minclip.preprocess(image, side)

        side = self.get("clip").config.image_size
        return read_images(paths, side, None if self.checkpoint("clip") else as_published)

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Tensor:
        """Embed texts with CLIP -> (b e), unnormalised."""
        clip = self.get("clip")
        return clip.encode_text(self.encode("clip", self.clip_tokenizer(), texts, clip.config.context_length))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (b 3 h w) in [-1, 1] of any size with CLIP -> (b e), unnormalised; gradients reach the images."""
        clip = self.get("clip")
        side = clip.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return clip.encode_image(images)

    @torch.no_grad()
    def embed_files(self, paths: list[Path]) -> tuple[list[str], Tensor]:
        """Embed picture files with CLIP, 64 at a time, without those that cannot be read -> their names, (n e)."""
        names, features, progress = [], [], Progress("looking at pictures")
        for start in range(0, len(paths), 64):
            progress(start, len(paths))
            try:
                batch, images = self.read_images(paths[start : start + 64])
            except InputError as error:  # not one of these 64 can be read
                print(f"skipped: {error}", file=sys.stderr)
                continue
            names += batch
            features.append(self.embed_images(images.to(self.device)))
        progress(len(paths), len(paths))
        if not names:
            raise InputError(f"none of the {len(paths)} images could be read")
        return names, torch.cat(features)

    def similarity(self, text: str) -> Callable[[Tensor], Tensor]:
        """Return score(images (b 3 h w)) -> (b), the cosine of each image with the text."""
        target = F.normalize(self.embed_text([text]), dim=-1)
        return lambda images: (F.normalize(self.embed_images(images), dim=-1) * target).sum(dim=-1)
