"""Judge, patch by patch, whether a picture is real or a reconstruction [PatchGAN, Isola et al. 2017, sec. 3.2].

    images (b 3 h w) ──► k4 s2 ──► `layers` - 1 times (k4 s2) ──► k4 s1 ──► k4 s1 ──► scores (b 1 h' w')

Each score sees one patch, of 16, 34 or 70 pixels a side for 1, 2 or 3 layers. So the discriminator knows texture
and edges and leaves the picture as a whole to the reconstruction loss. Three layers, the default, are for 256
pixels; for 32 pixels one or two are plenty.
"""

from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Score patches of images: high for real, low for reconstructed, no squashing.

    channels: width of the first layer, doubled by each of the next up to eightfold
    layers: how often height and width are halved
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        if channels < 1 or layers < 1:
            raise ValueError(f"PatchGAN of {channels} channels, {layers} layers: both must be at least 1")
        self.layers = layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),  # BatchNorm has one
                      nn.BatchNorm2d(widths[i]), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.net = nn.Sequential(*parts)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Score images (b 3 h w) in [-1, 1]  ->  (b 1 h' w'), unbounded."""
        if min(images.shape[-2:]) < 3 * 2**self.layers:
            raise ValueError(f"pictures of {images.shape[-2]} x {images.shape[-1]} pixels are too small for {self.layers} "
                             f"layers; their sides must be at least {3 * 2**self.layers}, or use fewer layers")
        return self.net(images)


def initialise(module: nn.Module) -> None:
    """Draw convolutions from N(0, 0.02) and BatchNorm's scales from N(1, 0.02), biases zero [DCGAN sec. 3]."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
