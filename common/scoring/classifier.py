"""Train a small classifier of a data set's true pictures, to judge drawings independently.

    images (b 3 h w) --> [conv s2, conv] x 3 --> mean over h w --> linear --> logits (b classes)
                         16, 64, 128 channels    features (b f)

Its accuracy on drawings shows whether they look like what was asked for [the reverse of Ravuri and
Vinyals 2019]. Its features stand in for Inception's, learned on photographs of 299 pixels, in the
Fréchet distance. On Fashion-MNIST, 60 seconds on one core reach 90 % on the test set.
"""

import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

import data

from ..run.pictures import Progress, shifted

LARGEST_SIDE = 32  # larger pictures are scaled down: enough to tell classes apart, and quick
SHIFT = 2  # pixels by which training pictures move
BATCH_SIZE, LEARNING_RATE, WARMUP, MOST_STEPS = 128, 4e-3, 0.2, 3000


def resize(images: Tensor, side: int) -> Tensor:
    """Scale images (b 3 h w) to (b 3 side side), antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


class Classifier(nn.Module):
    """Tell the class of a picture, scaled to so many pixels."""

    def __init__(self, classes: int, side: int):
        super().__init__()
        self.side, layers = side, []
        for i, (channels, out) in enumerate(pairwise((3, 16, 16, 64, 64, 128, 128))):
            # the first of each two halves the sides; BatchNorm brings the bias
            conv = nn.Conv2d(channels, out, 3, stride=2 - i % 2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(128, classes)

    def features(self, images: Tensor) -> Tensor:
        """Describe images (b 3 h w) in [-1, 1], of any size -> (b f)."""
        # channels_last is the faster layout for convolutions
        images = resize(images, self.side).contiguous(memory_format=torch.channels_last)
        return reduce(self.layers(images), "b f h w -> b f", "mean")

    def forward(self, images: Tensor) -> Tensor:
        """Score each class: images (b 3 h w) in [-1, 1] -> logits (b classes)."""
        return self.head(self.features(images))


def train_classifier(images: data.Dataset, classes: list[str], seed: int, seconds: float,
                     device: str = "cpu") -> Classifier:
    """Train on pictures with one caption each, their class -> a classifier in eval mode.

    It ends after so many seconds, or MOST_STEPS. Pictures are not mirrored: b is not d.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(len(classes), min(LARGEST_SIDE, images.batch([0]).shape[-1]))
        model = model.to(device, memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        progress, start, step, done = Progress("training the classifier"), time.monotonic(), 0, 0.0
        while done < 1:
            indices = torch.randint(len(images), (BATCH_SIZE,))
            pictures = shifted(resize(images.batch(indices), model.side), SHIFT).to(device)
            labels = [classes.index(images.captions[i][0]) for i in indices.tolist()]
            loss = F.cross_entropy(model(pictures), torch.tensor(labels, device=device))
            optimiser.zero_grad()
            loss.backward()
            # linear warm-up, then linear decay to zero
            rate = min((done + 0.01) / WARMUP, (1 - done) / (1 - WARMUP))
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * rate
            optimiser.step()
            step += 1
            done = max(step / MOST_STEPS, (time.monotonic() - start) / seconds)
            progress(round(100 * min(done, 1)), 100, f"loss {loss.item():.3f}")
    return model.eval()
