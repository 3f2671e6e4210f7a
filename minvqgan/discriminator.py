"""Classify each patch of an image as real or reconstructed [pix2pix, Isola et al. 2017].

    images (b 3 h w) --> 4x4 stride 2, `layers` times --> 4x4 --> 4x4 --> scores (b 1 h' w')

Each score sees one patch of 16, 34 or 70 pixels a side, for 1, 2 or 3 layers. So the discriminator
learns edges and texture, and the image as a whole is left to the reconstruction loss. The paper's
three layers are for 256 pixels; for 32 pixels use one or two.
"""

from torch import Tensor, nn

from .errors import InputError


class PatchGAN(nn.Module):
    """Score patches, high for real and low for reconstructed; unbounded, for the hinge loss.

    channels: width of the first layer; each further one doubles it, up to 8 times
    layers: how often height and width are halved
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        super().__init__()
        if channels < 1 or layers < 1:
            raise InputError(f"PatchGAN of {channels} channels, {layers} layers: both must be at "
                             "least 1")
        self.min_side = 3 * 2**layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            # No bias: BatchNorm subtracts the mean, and adds a bias of its own.
            parts += [nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding=1, bias=False),
                      nn.BatchNorm2d(widths[i + 1]), nn.LeakyReLU(0.2)]
        parts += [nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.net = nn.Sequential(*parts)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Score images (b 3 h w) in [-1, 1] -> (b 1 h' w'), unbounded."""
        if min(images.shape[2:]) < self.min_side:
            raise InputError(f"the discriminator needs sides of at least {self.min_side} pixels, "
                             f"not {min(images.shape[2:])}: use fewer layers")
        return self.net(images)


def initialise(module: nn.Module) -> None:
    """Sample convolutions from N(0, 0.02²), gains from N(1, 0.02²); biases 0 [DCGAN sec. 4]."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
