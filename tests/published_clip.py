"""Published CLIPs, small: names and shapes as facts about the files, not derived from our code.

openai/CLIP at d05afc4, mlfoundations/open_clip at 89fb801, transformers 5.23.0.
"""

import seeded
import torch

Shapes = dict[str, tuple[int, ...]]

SMALL_OPENAI = dict(vision=128, text=64, embed=32, layers=(2, 2), patch=8, patches=16, context=16,
                    vocab=99)
SMALL_OPEN_CLIP = SMALL_OPENAI | dict(vision=160)
OPENAI_EXTRAS = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16),
                 "vocab_size": torch.tensor(99)}
FIRST_MERGES = "i n|t h|a n|r e|a r|e r|th e</w>|in g</w>|o u|o n".split("|")  # of CLIP's list


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: seeded.fill(name, shape) for name, shape in shapes.items()}


def with_bias(name: str, rows: int, *columns: int) -> Shapes:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def openai_shapes(vision: int, text: int, embed: int, layers: tuple[int, int], patch: int,
                  patches: int, context: int, vocab: int, hidden: int | None = None) -> Shapes:
    """List OpenAI's and open_clip's names and shapes."""
    shapes = {
        "positional_embedding": (context, text), "text_projection": (text, embed),
        "logit_scale": (), "visual.class_embedding": (vision,),
        "visual.positional_embedding": (patches + 1, vision), "visual.proj": (vision, embed),
        "visual.conv1.weight": (vision, 3, patch, patch), "token_embedding.weight": (vocab, text),
        **with_bias("visual.ln_pre", vision), **with_bias("visual.ln_post", vision),
        **with_bias("ln_final", text),
    }
    encoders = (("visual.", vision, layers[0], hidden or 4 * vision),
                ("", text, layers[1], 4 * text))
    for side, width, count, wide in encoders:
        for block in range(count):
            at = f"{side}transformer.resblocks.{block}"
            shapes |= {
                **with_bias(f"{at}.attn.out_proj", width, width),
                **with_bias(f"{at}.mlp.c_fc", wide, width),
                **with_bias(f"{at}.mlp.c_proj", width, wide),
                f"{at}.attn.in_proj_weight": (3 * width, width),
                f"{at}.attn.in_proj_bias": (3 * width,),
                **with_bias(f"{at}.ln_1", width), **with_bias(f"{at}.ln_2", width),
            }
    return shapes


def hugging_face_shapes(vocab: int = 99) -> Shapes:
    """List the names and shapes of transformers' CLIPModel, of SMALL_OPENAI's sizes."""
    shapes = {
        "logit_scale": (), "visual_projection.weight": (32, 128),
        "text_projection.weight": (32, 64),
        "text_model.embeddings.token_embedding.weight": (vocab, 64),
        "text_model.embeddings.position_embedding.weight": (16, 64),
        "vision_model.embeddings.class_embedding": (128,),
        "vision_model.embeddings.patch_embedding.weight": (128, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (17, 128),
        **with_bias("text_model.final_layer_norm", 64),
        **with_bias("vision_model.pre_layrnorm", 128),
        **with_bias("vision_model.post_layernorm", 128),
    }
    for side, width in (("vision", 128), ("text", 64)):
        for layer in range(2):
            at = f"{side}_model.encoder.layers.{layer}"
            for name in ("k", "v", "q", "out"):
                shapes |= with_bias(f"{at}.self_attn.{name}_proj", width, width)
            shapes |= {**with_bias(f"{at}.mlp.fc1", 4 * width, width),
                       **with_bias(f"{at}.mlp.fc2", width, 4 * width),
                       **with_bias(f"{at}.layer_norm1", width),
                       **with_bias(f"{at}.layer_norm2", width)}
    return shapes


def hugging_face_config(**text) -> dict:
    """Return a config.json: four heads of 32 see images, not two of 64, as only it can know."""
    return {
        "model_type": "clip", "projection_dim": 32,
        "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
                        "vocab_size": 99, "eos_token_id": 2, **text},
        "vision_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "hidden_act": "quick_gelu"},
    }
