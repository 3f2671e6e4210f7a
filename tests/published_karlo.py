"""Karlo's prior as published, in small: names and shapes as facts, not derived from our code."""

CHECKPOINT = "prior-ckpt-step=01000000-of-01000000.ckpt"
STATS = "ViT-L-14_stats.th"


def published_shapes(text_length, embed_dim, width, layers) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of Karlo's weights."""
    d, e = width, embed_dim
    shapes = {"model.positional_embedding": (1, text_length + 4, d), "model.prd_emb": (1, 1, d),
              "model.final_ln.weight": (d,), "model.final_ln.bias": (d,)}
    linears = {"time_embed.0": (d, d), "time_embed.2": (d, d), "text_enc_proj": (d, e), "text_emb_proj": (d, e),
               "clip_img_proj": (d, e), "out_proj": (e, d)}
    for block in (f"transformer.resblocks.{layer}" for layer in range(layers)):
        linears |= {f"{block}.attn.c_qkv": (3 * d, d), f"{block}.attn.c_proj": (d, d),
                    f"{block}.mlp.c_fc": (4 * d, d), f"{block}.mlp.c_proj": (d, 4 * d)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"model.{block}.{norm}.weight": (d,), f"model.{block}.{norm}.bias": (d,)}
    for name, shape in linears.items():
        shapes |= {f"model.{name}.weight": shape, f"model.{name}.bias": shape[:1]}
    return shapes
