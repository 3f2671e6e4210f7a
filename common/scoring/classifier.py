"""A small convolutional classifier of a data set's true pictures: a judge of drawings that shares nothing with our models.

    images (b 3 h w) --> [conv s2, conv] x 3 --> mean over h w --> features (b f) --> linear --> one score per class
                          16, 64, 128 channels

Accuracy on drawings shows whether they look like what was asked for [Ravuri and Vinyals 2019, turned round: they train on
drawings and test on true pictures]. The features give the distances of `picture_scores`, in place of Inception's, which
were learned on photographs of 299 pixels. On Fashion-MNIST, 60 seconds on one core give 90 % on its test set.
"""

import time

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

import data

from ..run.pictures import Progress
from ..training.loop import shifted

LARGEST_SIDE = 32  # larger pictures are scaled down: the kind of thing shows, and a minute is enough
SHIFT = 2  # pixels by which training pictures move
BATCH_SIZE, LEARNING_RATE, WARMUP, MOST_STEPS = 128, 4e-3, 0.2, 3000


def resize(images: Tensor, side: int) -> Tensor:
    """Scale images (b 3 h w) to (b 3 side side), antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def layer(channels: int, out: int, stride: int) -> nn.Sequential:
    """Convolution, normalisation, ReLU: (b channels h w) -> (b out h/stride w/stride)."""
    conv = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)  # the normalisation brings a bias of its own
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class Classifier(nn.Module):
    """Name the class of a picture."""

    def __init__(self, classes: list[str], side: int, widths: tuple[int, ...] = (16, 64, 128)):
        super().__init__()
        self.classes, self.side = classes, side
        pairs = zip((3, *widths), widths)
        self.stages = nn.Sequential(*(nn.Sequential(layer(a, b, stride=2), layer(b, b, stride=1)) for a, b in pairs))
        self.head = nn.Linear(widths[-1], len(classes))

    def features(self, images: Tensor) -> Tensor:
        """Describe images (b 3 h w) in [-1, 1], of any size, by what the last layer reads -> (b f)."""
        images = resize(images, self.side).contiguous(memory_format=torch.channels_last)  # the faster layout for convolutions
        return reduce(self.stages(images), "b f h w -> b f", "mean")

    def forward(self, images: Tensor) -> Tensor:
        """Score each class: images (b 3 h w) in [-1, 1] -> logits (b classes)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def predict(self, images: Tensor) -> list[str]:
        """Name the likeliest class of each image (b 3 h w) in [-1, 1]."""
        return [self.classes[i] for i in self(images).argmax(dim=1).tolist()]


def train_classifier(images: data.Dataset, classes: list[str], seed: int, seconds: float, device: str = "cpu") -> Classifier:
    """Train on true pictures for so many seconds, at most MOST_STEPS steps -> the classifier, in eval mode.

    images: each with one caption, its class. classes: their names. They are not mirrored: b is not d.
    The global generator is left as it was.
    """
    number = {name: i for i, name in enumerate(classes)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(classes, min(LARGEST_SIDE, images.batch([0]).shape[-1]))
        model = model.to(device, memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        # the rate rises along a line, then falls to zero at the end of the time
        start, step, done, progress = time.monotonic(), 0, 0.0, Progress("training the classifier")
        while done < 1:
            indices = torch.randint(len(images), (BATCH_SIZE,))
            pictures = shifted(resize(images.batch(indices), model.side), SHIFT).to(device)
            labels = torch.tensor([number[images.captions[i][0]] for i in indices.tolist()], device=device)
            loss = F.cross_entropy(model(pictures), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * min((done + 0.01) / WARMUP, (1 - done) / (1 - WARMUP))
            optimiser.step()
            step += 1
            done = max(step / MOST_STEPS, (time.monotonic() - start) / seconds)
            progress(round(100 * min(done, 1)), 100, f"loss {loss.item():.3f}")
    return model.eval()
