"""Published VQGANs, small: names and shapes of taming-transformers' autoencoder, as facts."""

Shapes = dict[str, tuple[int, ...]]


def taming_shapes(ch, ch_mult, blocks, attend, z_channels, codes, dim, gumbel=False) -> Shapes:
    """List its tensors; attend: the levels that have attention, 0 the picture's."""
    shapes = {}

    def conv(name, c_in, c_out, side):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c_out, c_in, side, side), (c_out,)

    def norm(name, c):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (c,), (c,)

    def block(name, c_in, c_out):
        norm(f"{name}.norm1", c_in), conv(f"{name}.conv1", c_in, c_out, 3)
        norm(f"{name}.norm2", c_out), conv(f"{name}.conv2", c_out, c_out, 3)
        if c_in != c_out:
            conv(f"{name}.nin_shortcut", c_in, c_out, 1)

    def attention(name, c):
        norm(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", c, c, 1)

    def middle(name, c):
        block(f"{name}.block_1", c, c), attention(f"{name}.attn_1", c)
        block(f"{name}.block_2", c, c)

    def level(name, c_in, c_out, count, attends):
        for j in range(count):
            block(f"{name}.block.{j}", c_out if j else c_in, c_out)
            if attends:
                attention(f"{name}.attn.{j}", c_out)

    width, widths = ch, [ch * m for m in ch_mult]
    conv("encoder.conv_in", 3, ch, 3)
    for i, wider in enumerate(widths):
        level(f"encoder.down.{i}", width, wider, blocks, i in attend)
        width = wider
        if i < len(widths) - 1:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    middle("encoder.mid", width), norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, z_channels, 3)
    conv("decoder.conv_in", z_channels, width, 3), middle("decoder.mid", width)
    for i, narrower in reversed(list(enumerate(widths))):
        level(f"decoder.up.{i}", width, narrower, blocks + 1, i in attend)
        width = narrower
        if i:
            conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width), conv("decoder.conv_out", width, 3, 3)
    conv("quant_conv", z_channels, dim, 1), conv("post_quant_conv", dim, z_channels, 1)
    if gumbel:
        conv("quantize.proj", dim, codes, 1)
    shapes[f"quantize.{'embed' if gumbel else 'embedding'}.weight"] = (codes, dim)
    return shapes


# Small, but 128 wide: below that the originals' groups hold fewer than four channels, and ours do
# not. The symmetric (1, 2, 1) with attention in the middle has the same shapes from either end.
STATES = {"vq": taming_shapes(128, (1, 2, 1), 1, (1,), 24, 96, 8),
          "gumbel": taming_shapes(128, (1, 1), 2, (1,), 16, 64, 16, gumbel=True)}
