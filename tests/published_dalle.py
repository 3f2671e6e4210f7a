"""minDALL-E's published layout as facts, in small: nothing here is derived from our code."""

import json


def published_shapes(text_vocab, image_vocab, text_length, grid, width, layers) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of minDALL-E's weights."""
    d = width
    shapes = {"tok_emb_img.weight": (image_vocab, d), "tok_emb_txt.weight": (text_vocab, d),
              "pos_emb_img.weight": (grid**2, d), "pos_emb_txt.weight": (text_length, d)}
    for block in (f"blocks.{layer}" for layer in range(layers)):
        for norm in ("ln1", "ln2"):
            shapes |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
        for linear, rows, columns in (("attn.key", d, d), ("attn.query", d, d), ("attn.value", d, d),
                                      ("attn.proj", d, d), ("mlp.0", 4 * d, d), ("mlp.2", d, 4 * d)):
            shapes |= {f"{block}.{linear}.weight": (rows, columns), f"{block}.{linear}.bias": (rows,)}
    return shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,), "head_img.weight": (image_vocab, d),
                     "head_txt.weight": (text_vocab, d)}


def published_yaml(text_vocab, image_vocab, text_length, grid, width, layers, heads) -> str:
    """Write a config.yaml as minDALL-E does, with names that both stages use and a comment that misleads."""
    return f"""
stage1:
  type: vqgan
  embed_dim: 256
  hparams:
    n_heads: 3

stage2:
  type: transformer1d
  vocab_size_txt: {text_vocab}
  vocab_size_img: {image_vocab}
  hparams:
    embed_dim: {width}
    n_layers: {layers}
    # n_heads: 7
    n_heads: {heads}
    n_dense_layers: {layers}
    ctx_len_img: {grid**2}
    ctx_len_txt: {text_length}
    embd_pdrop: 0.0
    gelu_use_approx: False

optimizer:
  n_heads: 5
"""


# A vocabulary in the order of the published one: two special tokens, characters, the same ending a word, merges.
CHARACTERS, ENDINGS = "!#$&'(),-.012345:?@abcdefghiklmnoprstuvwyéï—日本", "htlw!g?fé.a&sn本e日,5'4k0:$p3-y@#d—)("
MERGES = """h e_ t he_ c a m a l a v e_ a b g e_ l l_ o n_ o ve_ r ge_ s ma la rge_ ab ove_ sma ll_ i n e a h a r e s
e b l b ea c i c l c h_ d e e l e p f é_ n t_ p in r t_ r cl u e_ ca t_ ca fé_ ha nt_ re d_ se rt_ bl ue_ bea ch_ ci
rcl de sert_ el ep pin k_ circl e_ elep hant_ i t_ m e_ 1 0_ 2 4_ 3 0_ a ï a in a me_ c h d o e t_ e y_ f r g s_ g n_
g la i s i t i l_ i n_ i gn_ k ey_ m o n o n aï n gla n key_ o f_ p ain s t s u s se s ign_ t s_ t in w it ca ts_ ma
n_ ma il_ ea p_ ha t_ re et_ ch eap_ do gs_ fr ame_ is n_ mo nkey_ no w_ naï ve_ ngla sse pain tin st reet_ su nglasse
wit h_ paintin g_ sunglasse s_""".replace("_", "</w>").split()
PAIRS = list(zip(MERGES[::2], MERGES[1::2]))
TOKENS = ["[PAD]", "[UNK]", *CHARACTERS, *(letter + "</w>" for letter in ENDINGS), *map("".join, PAIRS)]


def publish_tokenizer(folder, tokens=TOKENS, pairs=PAIRS):
    """Write the tokenizer's two files as minDALL-E names them, and return the folder."""
    folder.mkdir(exist_ok=True)
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "bpe-16k-vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2 - Trained by `huggingface/tokenizers`", *map(" ".join, pairs), ""]
    (folder / "bpe-16k-merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
