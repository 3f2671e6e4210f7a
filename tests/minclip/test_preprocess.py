"""The pixels of a picture, against torchvision's rules written out on Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_clip import SMALL

from minclip import CLIP, preprocess


def formula(width: int, height: int, mode: str) -> Image.Image:
    """Draw waves of another length in each channel, and a little noise."""
    generator, channels = np.random.RandomState(1), []
    y, x = np.mgrid[0:height, 0:width]
    for k in range(len(Image.new(mode, (1, 1)).getbands())):
        waves = 127.5 + 100 * np.sin(x / (3 + k) + k) * np.cos(y / (4 + k))
        waves = waves + 20 * (generator.random_sample((height, width)) - 0.5)
        channels.append(Image.fromarray(waves.clip(0, 255).astype(np.uint8)))
    return Image.merge(mode, channels)


# mean and sum of absolute values of the normalised pixels, on Pillow 13
@pytest.mark.parametrize("width, height, mode, side, mean, total", [
    (100, 67, "RGB", 32, 0.1827241, 1909.676),
    (67, 101, "RGB", 32, 0.1858571, 1933.215),
    (32, 32, "RGB", 32, 0.1906719, 1931.095),
    (33, 45, "RGBA", 32, 0.1641123, 1910.375),
    (20, 15, "L", 32, 0.1808514, 2285.585),
    (51, 50, "LA", 24, 0.1738323, 1044.869),
    (301, 224, "RGB", 224, 0.1805206, 93957.98),
    (225, 400, "RGB", 224, 0.1804097, 93765.49),
])
def test_pixels_are_those_of_clips_own_preprocessing(width, height, mode, side, mean, total):
    pixels = preprocess(formula(width, height, mode), side)
    assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
    encoder = CLIP(SMALL).image_encoder
    normalised = ((pixels + 1) / 2 - encoder.mean) / encoder.std
    assert normalised.mean().item() == pytest.approx(mean, abs=2e-6)
    assert normalised.abs().sum().item() == pytest.approx(total, rel=2e-6)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (30_001, 3)])
def test_a_thread_of_a_picture_is_cropped_before_it_is_scaled(monkeypatch, size):
    thread, resize, sizes = Image.new("L", size, 10), Image.Image.resize, []
    begin = [side // 2 - 1000 if side > 1000 else 0 for side in size]
    end = [side // 2 + 1000 if side > 1000 else side for side in size]
    thread.paste(200, (*begin, *end))
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *rest:
                        sizes.append(size) or resize(image, size, *rest))
    pixels = preprocess(thread, 64)
    assert len(sizes) == 1 and max(sizes[0]) <= 52 * 64
    assert torch.equal(pixels, torch.full((3, 64, 64), 200 / 127.5 - 1))


def test_a_long_picture_gives_the_pixels_that_scaling_it_whole_would():
    long = formula(1001, 10, "RGB")
    whole = long.resize((2002, 20), Image.Resampling.BICUBIC).crop((991, 0, 1011, 20))
    expected = torch.from_numpy(np.array(whole)).movedim(-1, 0).float()
    assert torch.equal(((preprocess(long, 20) + 1) * 127.5).round(), expected)
