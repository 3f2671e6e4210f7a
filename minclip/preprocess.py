"""Turn an image into the pixels that published CLIPs were trained on [openai/CLIP, _transform].

    any mode, any size --> short side to n, bicubic --> centre n x n --> RGB --> (3 n n) in [-1, 1]

Each step changes the features: the resize widens its kernel when it shrinks (antialias), the crop
rounds halves to even, and RGB comes last, so that a transparent background shows the colour stored
under it. The model itself normalises by the mean and standard deviation of the channels.
"""

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def preprocess(image: Image.Image, image_size: int) -> Tensor:
    """Scale, crop and convert an image -> (3 n n) float32 in [-1, 1], n = image_size."""
    short = min(image.size)
    if max(image.size) > 50 * short:  # scaled whole, so long a picture could fill the memory
        left, top = (max(0, side - 50 * short) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    size = tuple(image_size if side == short else int(image_size * side / short)
                 for side in image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (int(round((side - image_size) / 2.0)) for side in image.size)
    image = image.crop((left, top, left + image_size, top + image_size)).convert("RGB")
    return rearrange(torch.from_numpy(np.array(image)), "h w c -> c h w").float() / 127.5 - 1
