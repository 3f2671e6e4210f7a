"""A run's models, loaded when first asked for, each with what it was trained with."""

import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import mindalle
import mindalle.unclip
import minclip
import minvqgan

from .errors import InputError
from .flags import command
from .pictures import Progress, read_images

PACKAGES = {"clip": minclip, "vqgan": minvqgan, "dalle": mindalle,
            "prior": mindalle.unclip, "decoder": mindalle.unclip}
Condition = tuple[Tensor, Tensor, Tensor]  # token features (b t d), mask (b t), z_t (b e)


def fingerprint(model: nn.Module) -> str:
    """Name a model's weights in 12 hexadecimal digits."""
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def reconstruct(vqgan: minvqgan.VQGAN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode images (b 3 h w), 64 at a time -> images in [-1, 1], codes (b g g)."""
    codes = torch.cat([vqgan.encode(part) for part in images.split(64)])
    return torch.cat([vqgan.decode(part) for part in codes.split(64)]).clamp(-1, 1), codes


@torch.no_grad()
def read_captions(clip: minclip.CLIP, ids: Tensor, unit_length: bool = True) -> Condition:
    """Read captions (b t) with CLIP -> what DALL·E 2's prior reads of them.

    unit_length: normalise z_t; False for Karlo's prior, which was trained on unnormalised ones.
    """
    token_features = clip.text_encoder.tokens(ids)
    end = ids.argmax(dim=-1, keepdim=True)  # the end token has the highest id
    mask = torch.arange(ids.shape[1], device=ids.device) <= end                      # (b t)
    z_t = clip.encode_text(ids)
    return token_features, mask, F.normalize(z_t, dim=-1) if unit_length else z_t


class Models:
    """Load models from a run's folder, or from files named instead of its own.

    These may be published weights. A published CLIP brings its own tokenizer, minDALL-E's folder
    its tokenizer and its VQGAN.
    """

    def __init__(self, run: str | Path, device: str, preset: str | None = None,
                 merges: str | None = None, **files: str | None):
        self.run, self.device, self.preset, self.merges = Path(run), device, preset, merges
        self.loaded: dict[str, Any] = {}
        if files.get("dalle") and (Path(files["dalle"]) / "stage1_last.ckpt").exists():
            files["vqgan"] = files.get("vqgan") or files["dalle"]
        names = {name: f"{name}.pt" for name in PACKAGES} | {"tokenizer": "tokenizer.json"}
        self.files = {key: Path(files.get(key) or self.run / name) for key, name in names.items()}

    def has(self, name: str) -> bool:
        return self.files[name].exists()

    def get(self, name: str) -> Any:
        """Return a model, or the run's tokenizer. Raises InputError if its file is missing."""
        if name not in self.loaded:
            path, package = self.files[name], PACKAGES.get(name)
            if not path.exists():
                model = "clip" if name == "tokenizer" else name
                train = command("train.py", model, "--run", self.run)
                raise InputError(f"{path} is missing: copy one there, name another --run, "
                                 f"or train it: {train}")
            options = {"preset": self.preset} if name == "clip" else {}
            self.loaded[name] = (package.load(path, self.device, **options) if package
                                 else minclip.Tokenizer.load(path))
        return self.loaded[name]

    def checkpoint(self, name: str) -> dict[str, Any]:
        """Return train.py's checkpoint, its weights mapped from the file; {} if published."""
        key, files = f"{name} checkpoint", PACKAGES[name].pretrained
        if key not in self.loaded:
            if not self.has(name):
                self.get(name)  # says what is missing
            content = files.read(files.locate(self.files[name]))
            ours = isinstance(content, dict) and content.get("kind") == name
            self.loaded[key] = content if ours else {}
        return self.loaded[key]

    def refuse_mismatch(self, name: str, part: str, found: str) -> None:
        """Raise InputError if a model was trained with another tokenizer, VQGAN or CLIP.

        part: which; found: the fingerprint of the one that is here
        """
        known = self.checkpoint(name).get(part)
        if known not in (None, found):
            raise InputError(f"{self.files[name]} was trained with another {part} than "
                             f"{self.files[part]} (fingerprint {known}, not {found}) and means "
                             f"nothing with this one: name the right --{part}, or another --run")

    def clip_tokenizer(self) -> minclip.Tokenizer:
        """Return CLIP's tokenizer: --merges, or what lies beside a --clip, or the run's own."""
        clip, path = self.get("clip"), self.files["clip"]
        if "clip_tokenizer" not in self.loaded:
            folder = path if path.is_dir() else path.parent
            files = [folder / name for name in minclip.tokenizer.FILES]
            if self.merges or folder != self.run and any(file.exists() for file in files):
                tokenizer = minclip.Tokenizer.load(self.merges or folder)
            else:
                tokenizer = self.get("tokenizer")
            if tokenizer.vocab_size != clip.config.vocab_size:
                raise InputError(f"{path} knows {clip.config.vocab_size} tokens, the tokenizer "
                                 f"{tokenizer.vocab_size}: name the one it was trained with by "
                                 "--merges, as bpe_simple_vocab_16e6.txt.gz")
            self.refuse_mismatch("clip", "tokenizer", tokenizer.fingerprint)
            self.loaded["clip_tokenizer"] = tokenizer
        return self.loaded["clip_tokenizer"]

    def dalle(self) -> tuple[mindalle.DALLE, minclip.Tokenizer | mindalle.MinDALLETokenizer]:
        """Return DALL·E and its tokenizer, once both it and the VQGAN are known to fit."""
        model, vqgan, path = self.get("dalle"), self.get("vqgan"), self.files["dalle"]
        if vqgan.config.codebook_size != model.config.image_vocab:
            raise InputError(f"{path} draws in {model.config.image_vocab} codes, "
                             f"{self.files['vqgan']} has {vqgan.config.codebook_size}: "
                             "name the right --vqgan")
        if "dalle_tokenizer" not in self.loaded:
            if self.checkpoint("dalle"):
                tokenizer = self.get("tokenizer")
                self.refuse_mismatch("dalle", "tokenizer", tokenizer.fingerprint)
                self.refuse_mismatch("dalle", "vqgan", fingerprint(vqgan))
            else:
                folder = path if path.is_dir() else path.parent
                tokenizer = mindalle.MinDALLETokenizer.load(folder / "tokenizer")
            self.loaded["dalle_tokenizer"] = tokenizer
        return model, self.loaded["dalle_tokenizer"]

    def unclip(self, name: str) -> mindalle.unclip.Prior | mindalle.unclip.Decoder:
        """Return the prior or the decoder, once CLIP is known to be the one it was trained with."""
        model, clip = self.get(name), self.get("clip")
        if f"{name} fits" not in self.loaded:
            self.refuse_mismatch(name, "clip", fingerprint(clip))
            sizes = {"embed_dim": clip.config.embed_dim, "token_width": clip.config.text_width,
                     "text_length": clip.config.context_length}
            for field, size in sizes.items():
                needed = getattr(model.config, field, size)  # a decoder reads no text
                if needed != size:
                    raise InputError(f"{self.files[name]} needs a CLIP of {field} {needed}, "
                                     f"{self.files['clip']} has {size}: name the right --clip")
            self.loaded[f"{name} fits"] = True
        return model

    # ---- CLIP's embeddings ----------------------------------------------------------------------

    def encode(self, name: str, tokenizer: Any, texts: list[str], length: int) -> Tensor:
        """Encode texts for a model -> ids (b t), long ones cut if it was trained with --truncate."""
        cut = self.checkpoint(name).get("job", {}).get("truncate")
        options = {"truncate": True} if cut else {}
        return tokenizer.encode(texts, length, **options).to(self.device)

    def encode_for_clip(self, texts: list[str]) -> Tensor:
        length = self.get("clip").config.context_length
        return self.encode("clip", self.clip_tokenizer(), texts, length)

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
        return self.get("clip").encode_text(self.encode_for_clip(texts))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (b 3 h w) in [-1, 1] of any size -> (b e), unnormalised; differentiable."""
        clip = self.get("clip")
        side = clip.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return clip.encode_image(images)

    @torch.no_grad()
    def embed_files(self, paths: list[Path]) -> tuple[list[str], Tensor]:
        """Embed picture files, skipping those that cannot be read -> their names, (n e)."""
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
