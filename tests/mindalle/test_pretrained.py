"""What loading a DALL·E and its tokenizer promises: every name is a claim, and each can fail."""

import dataclasses
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

import seeded
from mindalle import DALLE, DALLEConfig, InputError, Tokenizer, dalle_loss, generate, load
from mindalle.pretrained import fit, from_mindalle, read
from mindalle.tokenizer import split_words
from small_dalle import SMALL, each_design, small_batch, small_model


# ------------------------------------------------------------------------------------------------- pretrained


def checkpoint_of(model: DALLE, **changes) -> dict:
    config, weights = dataclasses.asdict(model.config), model.state_dict()
    return {"kind": "dalle", "config": config, "weights": weights, "step": 7, **changes}


@each_design
def test_a_saved_model_comes_back_the_same_and_in_eval_mode(tmp_path, design):
    model, (text, codes, _) = small_model(**design).train(), small_batch()
    torch.save(checkpoint_of(model), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and not loaded.training
    assert loaded(text, codes)[1].equal(model(text, codes)[1])
    torch.save(checkpoint_of(model), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "legacy.pt")(text, codes)[1].equal(model(text, codes)[1])


def test_a_checkpoint_that_holds_the_weight_of_the_text_loss_as_older_ones_do_loads(tmp_path):
    model, (text, codes, _) = small_model(), small_batch()
    older = dataclasses.asdict(model.config) | {"text_loss_weight": 0.125}
    del older["order"]
    torch.save(checkpoint_of(model, config=older), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and loaded(text, codes)[1].equal(model(text, codes)[1])


@pytest.mark.parametrize("content", [
    {"kind": "clip", "config": {}, "weights": {}}, {"model": 1, "epoch": 2}, [1, 2],
])
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match="other.pt is .*mindalle reads a dalle.pt") as error:
        load(path)
    assert "\n" not in str(error.value)
    if isinstance(content, dict) and "kind" in content:
        assert "'clip'" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02garbage", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken.pt is damaged, or no file") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_weights_or_a_config_that_do_not_fit_are_refused_in_one_line(tmp_path):
    model = small_model()
    path = tmp_path / "bent.pt"
    bent = [checkpoint_of(model, weights={}), checkpoint_of(model, config={"depth": 3}),
            checkpoint_of(model, config={"width": 7, "heads": 2}), {"kind": "dalle"}]
    for checkpoint in bent:
        torch.save(checkpoint, path)
        with pytest.raises(InputError, match="bent.pt looks like a dalle.pt") as error:
            load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, reason", [
    ("none.pt", "No such file"), ("none/dalle.pt", "No such file"), ("x" * 300, "File name too long"),
])
def test_a_file_that_cannot_be_opened_is_refused_in_one_line(tmp_path, name, reason):
    for reader in (load, Tokenizer.load):
        with pytest.raises(InputError, match=rf"{name}: {reason}") as error:
            reader(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_bug_in_a_hacked_layer_shows_itself_when_weights_are_loaded(tmp_path, monkeypatch):
    torch.save(checkpoint_of(small_model()), tmp_path / "dalle.pt")
    monkeypatch.setattr("mindalle.model.Block", lambda width, heads: 1 + "1")
    with pytest.raises(TypeError, match="unsupported operand") as error:
        load(tmp_path)
    assert not isinstance(error.value, InputError)


class Malicious:
    """Write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    path, victim = tmp_path / "evil.pt", tmp_path / "victim"
    torch.save({"kind": "dalle", "config": Malicious(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil.pt asks to run [\w.]*open, which no file of weights needs") as error:
        load(path)
    assert not victim.exists() and "\n" not in str(error.value)
    pickle.loads(pickle.dumps(Malicious(victim))).close()  # the trap works
    assert victim.exists()


def test_weights_stay_in_the_file_and_learn_in_memory(tmp_path):
    model, (text, codes, _) = small_model(), small_batch()
    torch.save(checkpoint_of(model), tmp_path / "dalle.pt")
    checkpoint = read(tmp_path / "dalle.pt")
    with torch.device("meta"):
        loaded = DALLE(model.config)
    fit(loaded, checkpoint["weights"])
    assert all(parameter.data_ptr() == checkpoint["weights"][name].data_ptr()  # not a copy
               for name, parameter in loaded.named_parameters())
    (tmp_path / "new.pt").write_bytes(b"")
    (tmp_path / "new.pt").replace(tmp_path / "dalle.pt")  # as training on saves: what is mapped is the old file
    before = loaded(text, codes)[1]
    assert before.equal(model(text, codes)[1])
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.1)
    dalle_loss(*loaded(text, codes), text, codes)[0].backward()
    optimiser.step()
    assert not loaded(text, codes)[1].allclose(before)


def test_weights_saved_in_half_precision_come_back_in_float32(tmp_path):
    model = small_model()
    halves = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    torch.save(checkpoint_of(model, weights=halves), tmp_path / "dalle.pt")
    loaded = load(tmp_path)  # the folder will do
    assert all(weight.equal(halves[name].float()) for name, weight in loaded.state_dict().items())


@each_design
def test_a_model_built_on_the_meta_device_has_its_masks_angles_and_order(design):
    with torch.device("meta"):
        model = DALLE(DALLEConfig(**SMALL, **design))
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = dict(small_model(**design).named_buffers())
    assert expected.keys() == dict(model.named_buffers()).keys()
    assert all(buffer.equal(expected[name]) for name, buffer in model.named_buffers())


# ------------------------------------------------------------------------------------------------- published weights

# kakaobrain/minDALL-E at e548007, filled by seeded.fill under its own names, computed the numbers below.
PUBLISHED = {
    "one head": dict(
        sizes=dict(text_vocab=50, image_vocab=64, text_length=8, grid=4, width=64, layers=2), heads=1,
        text_logits=([0.2640758, 1.504564, 0.8528092, 0.6022123], [-0.2358113, 1.009312], 0.3488748),
        image_logits=([0.7691364, 0.08773731, -0.4442334, 1.004417], [1.392154, 1.489027], -0.9554443),
        losses=(4.224875, 4.873629),
        greedy=[[36, 62, 36, 36, 36, 36, 36, 17, 36, 36, 36, 36, 36, 36, 46, 36],
                [44, 3, 3, 15, 27, 50, 62, 46, 34, 27, 50, 40, 58, 40, 54, 49]],
    ),
    "four heads": dict(
        sizes=dict(text_vocab=40, image_vocab=72, text_length=12, grid=8, width=96, layers=3), heads=4,
        text_logits=([0.7602104, 0.6949543, -0.4437069, 2.297569], [1.57212, 1.883745], 0.9417629),
        image_logits=([0.8524957, -0.1159822, 0.2427365, 0.1476652], [0.7822388, 1.720149], 0.03528167),
        losses=(4.189077, 4.673609),
        greedy=[[19, 19, 19] + [14] * 12 + [19] + [14] * 6 + [19] + [14] * 35 + [19] + [14] * 5, [14] * 64],
    ),
}
SMALLEST = PUBLISHED["one head"]["sizes"]


def published_shapes(text_vocab, image_vocab, text_length, grid, width, layers) -> dict[str, tuple[int, ...]]:
    """List the names and shapes of minDALL-E's weights, as facts: nothing here is derived from our code."""
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


def publish(folder, name: str = "one head", change=lambda weights: None, yaml: str | None = None, **extras):
    """Write the files that minDALL-E publishes into a folder, and return it."""
    sizes, heads = PUBLISHED[name]["sizes"], PUBLISHED[name]["heads"]
    weights = {key: seeded.fill(key, shape) for key, shape in published_shapes(**sizes).items()}
    change(weights)
    torch.save({"state_dict": weights, **extras}, folder / "stage2_last.ckpt")
    (folder / "config.yaml").write_text(published_yaml(**sizes, heads=heads) if yaml is None else yaml)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_mindalle_computes_what_its_own_code_computes(name, tmp_path):
    facts = PUBLISHED[name]
    model = load(publish(tmp_path, name))
    assert model.config == DALLEConfig(**facts["sizes"], heads=facts["heads"], rotary=False) and not model.training
    text = seeded.ids(6, 2, model.config.text_length, model.config.text_vocab)
    codes = seeded.ids(7, 2, model.config.image_length, model.config.image_vocab)
    text_logits, image_logits = model(text, codes)
    for logits, (first, last, probe) in ((text_logits, facts["text_logits"]), (image_logits, facts["image_logits"])):
        assert logits.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4)
        assert logits.flatten()[-2:].tolist() == pytest.approx(last, abs=1e-4)
        assert seeded.probe(logits) == pytest.approx(probe, abs=1e-4)  # every element has a part in it
    losses = dalle_loss(text_logits, image_logits, text, codes)[1:]
    assert [loss.item() for loss in losses] == pytest.approx(facts["losses"], abs=1e-4)
    assert generate(model, text, temperature=0).flatten(1).tolist() == facts["greedy"]


def test_the_published_shape_is_the_large_preset_and_needs_no_config(tmp_path):
    with torch.device("meta"):
        theirs = {name: torch.empty(shape) for name, shape in published_shapes(
            text_vocab=16384, image_vocab=16384, text_length=64, grid=16, width=1536, layers=42).items()}
        model = DALLE(DALLEConfig.mindalle_1_3b())
    assert len(theirs) == 680 and sum(tensor.numel() for tensor in theirs.values()) == 1_291_081_728
    config, weights = from_mindalle({"state_dict": theirs}, tmp_path / "stage2_last.ckpt")
    assert config == DALLEConfig.mindalle_1_3b()
    fit(model, weights)  # every name and every shape
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_291_081_728


def test_mindalle_loads_bare_in_half_precision_or_with_masks_and_only_what_is_joined_is_copied(tmp_path):
    masked = {"blocks.0.attn.mask": torch.ones(1, 24, 24)}
    nested = load(publish(tmp_path, change=lambda weights: weights.update(masked)))
    bare = {name: weight.half() for name, weight in read(tmp_path / "stage2_last.ckpt")["state_dict"].items()}
    torch.save(bare, tmp_path / "bare.ckpt")
    for name, weight in load(tmp_path / "bare.ckpt").state_dict().items():
        assert weight.dtype == torch.float32 and weight.equal(nested.state_dict()[name].half().float())
    theirs = read(tmp_path / "bare.ckpt")
    _, ours = from_mindalle(theirs, tmp_path / "bare.ckpt")
    mapped = {tensor.data_ptr() for tensor in theirs.values()}
    assert all((tensor.data_ptr() in mapped) != ("qkv" in name) for name, tensor in ours.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_lightning_file_that_names_its_callback_class_loads(tmp_path, monkeypatch, zipped):
    module, name = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"
    callback = type(name, (), {"__module__": module})
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks", module):  # pickle looks it up there
        monkeypatch.setitem(sys.modules, parent, SimpleNamespace(ModelCheckpoint=callback))
    weights = {key: seeded.fill(key, shape) for key, shape in published_shapes(**SMALLEST).items()}
    checkpoint = {"epoch": 3, "callbacks": {callback: {"dirpath": "x"}}, "optimizer_states": [], "state_dict": weights}
    torch.save(checkpoint, tmp_path / "stage2_last.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    (tmp_path / "config.yaml").write_text(published_yaml(**SMALLEST, heads=1))
    assert load(tmp_path).config == DALLEConfig(**SMALLEST, heads=1, rotary=False)
    assert not any(name in str(allowed) for allowed in torch.serialization.get_safe_globals())  # only for that one call


@pytest.mark.parametrize("change, message", [
    (lambda weights: weights.pop("tok_emb_txt.weight"), "tok_emb_txt.weight is missing"),
    (lambda weights: weights.pop("blocks.1.attn.key.bias"), "blocks.1.attn.key.bias is missing"),
    (lambda weights: weights.pop("head_txt.weight"), "text_head.weight is missing"),
    (lambda weights: weights.update({"blocks.0.rel.weight": torch.ones(2)}), "blocks.0.rel.weight is one too many"),
    (lambda weights: weights.update({"ln_f.bias": torch.ones(9)}), "norm.bias has another shape"),
    (lambda weights: weights.update({"pos_emb_img.weight": torch.ones(17, 64)}), "another shape|ctx_len_img"),
    (lambda weights: weights.update({"blocks.1.attn.query.weight": torch.ones(63, 64),
                                     "blocks.1.attn.key.weight": torch.ones(65, 64)}),
     "blocks.1.attn.query.weight has another shape"),
    (lambda weights: weights.update({"ln_f.bias": "text"}), "'str'"),
])
def test_weights_of_mindalle_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=f"looks like minDALL-E's .* does not fit: .*({message})") as error:
        load(publish(tmp_path, change=change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("say, instead, message", [
    ("n_heads: 1", "", "put the config.yaml with its n_heads"),
    ("n_heads: 1", "n_heads: 7", "not divisible by 7 heads"),
    ("gelu_use_approx: False", "gelu_use_approx: True", "gelu_use_approx: True"),
    ("type: transformer1d", "type: igpt", "type: igpt"),
    ("embed_dim: 64", "embed_dim: 1536", "embed_dim: 1536"),
    ("n_layers: 2", "n_layers: 42", "n_layers: 42"),
    ("vocab_size_txt: 50", "vocab_size_txt: 51", "vocab_size_txt: 51"),
    ("vocab_size_img: 64", "vocab_size_img: 51", "vocab_size_img: 51"),
    ("ctx_len_txt: 8", "ctx_len_txt: 9", "ctx_len_txt: 9"),
    ("ctx_len_img: 16", "ctx_len_img: 25", "ctx_len_img: 25"),
])
def test_a_config_that_is_silent_on_heads_or_says_what_is_not_so_is_refused(tmp_path, say, instead, message):
    yaml = published_yaml(**SMALLEST, heads=1)
    assert say in yaml
    with pytest.raises(InputError, match=message):
        load(publish(tmp_path, yaml=yaml.replace(say, instead)))


def test_heads_are_read_from_a_config_of_one_line_too(tmp_path):
    yaml = "stage2: {type: 'transformer1d', hparams: {embed_dim: 64, n_heads: 4, gelu_use_approx: false}}  # n_heads: 2"
    assert load(publish(tmp_path, yaml=yaml)).config.heads == 4


def test_a_config_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    def read_text(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    publish(tmp_path)
    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    with pytest.raises(InputError, match="config.yaml: Permission denied") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_without_a_config_ask_for_it(tmp_path):
    publish(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(InputError, match="put the config.yaml"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} has none of dalle.pt, stage2_last.ckpt"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------- tokenizer

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


# The ids are those of minDALL-E's own tokenizer, tokenizers 0.23.3's CharBPETokenizer, on this vocabulary.
@pytest.mark.parametrize("text, ids", [
    ("a small red circle on the desert.", [58, 98, 121, 129, 92, 84, 126, 57]),
    ("A LARGE Pink ELEPHANT", [58, 96, 128, 130]),
    ("it's a man's hat, isn't it?", [131, 67, 60, 58, 168, 67, 60, 171, 65, 176, 67, 49, 131, 54]),
    ("   ", []),
    ("a\tred\ncat\r\nhere", [58, 121, 118, 28, 25, 36, 63]),
    ("café CAFÉ cafe\u0301", [119, 119, 85, 26, 25, 1]),  # accents stay, and are not composed
    ("日本 sign日本語", [64, 62, 163, 64, 62, 1]),  # a Chinese character is a word
    ("한국어", [1, 1, 1]),  # a Korean one is not
    ("a cat😀 👍🏽", [58, 85, 38, 1, 1, 1]),  # nor an emoji; each unknown character is one [UNK]
    ("$5 + 3 = 8 <b> ^_^ a|b ~`", [72, 66, 1, 74, *[1] * 8, 58, *[1] * 4]),
    ("“curly” — dash… ‘q’", [1, 23, 39, 36, 31, 76, 1, 80, 24, 21, 37, 48, 1, 1, 1, 1]),
    ("©®™ €£ § ¶ ¿que? «x»", [*[1] * 9, 117, 54, 1, 1, 1]),
    ("[PAD] [UNK] [pad] [unk]", [0, 1, 1, 35, 21, 79, 1, 1, 39, 33, 69, 1]),
    ("a[UNK]b", [58, 1, 1]),
    ("a\u00a0b\u2009c\u3000d\u200be", [58, 1, 1, 24, 63]),
    ("\u0000ctrl\u0007\ufffdx\u00ady", [23, 38, 36, 31, 1, 76]),
    ("İSTANBUL ẞ ΣΑΣ Σ", [29, 1, 160, 21, 33, 22, 39, 50, 1, 1, 1, 1, 1]),
    ("supercalifragilisticexpialidocious", [161, 35, 25, 36, 85, 31, 29, 143, 21, 27, 29, 31, 147, 38, 29, 23, 25, 1,
                                            35, 29, 21, 31, 29, 140, 106, 34, 39, 60]),
    ("a\u0301", [21, 1]),
])
def test_text_becomes_the_ids_of_mindalles_own_tokenizer(tmp_path, text, ids):
    tokenizer = Tokenizer.load(publish_tokenizer(tmp_path))
    assert tokenizer.encode(text, 64).tolist() == [ids + [0] * (64 - len(ids))]


# As the same library splits them; the vocabulary above has too few letters to show it.
@pytest.mark.parametrize("text, words", [
    ("ΣΑΣ İ ẞ Ünï", ["σας".replace("ς", "σ"), "i\u0307", "ß", "ünï"]),
    ("x² ½ 3.5%", ["x²", "½", "3", ".", "5", "%"]),
    ("日々〇カ한\uf900\U00020000b", ["日", "々〇カ한", "\uf900", "\U00020000", "b"]),
    ("a".join("\u3400\u9fff\ufaff\U0002a6df\U0002a700\U0002b81f\U0002b920\U0002ceaf\U0002f800\U0002fa1f"),
     [*"\u3400a\u9fffa\ufaffa\U0002a6dfa\U0002a700a\U0002b81fa\U0002b920a\U0002ceafa\U0002f800a\U0002fa1f"]),
    ("\U0002b820a\U0002b91f", ["\U0002b820a\U0002b91f"]),
    ("a".join("!$+<=>^`|~@_"), [*"!a$a+a<a=a>a^a`a|a~a@a_"]),
    ("a\x0bb\x0cc\x1cd\x85e\u180ef\ue000g", ["abcdefg"]),
    ("a\u2028b\u1680c", ["a", "b", "c"]),
    ("a\u0378b", ["a\u0378b"]),  # unassigned, as the newest emoji are to an older Python
    ("don’t_stop—now", ["don", "’", "t", "_", "stop", "—", "now"]),
])
def test_text_is_cut_into_words_as_by_mindalles_own_tokenizer(text, words):
    assert split_words(text) == words


def test_the_earliest_merge_goes_first_and_of_equal_ones_the_leftmost():
    tokens = ["[PAD]", "[UNK]", "a", "b", "a</w>", "bb", "ab", "aa", "aa</w>", "abb"]
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens)},
                          [("b", "b"), ("a", "b"), ("a", "a"), ("a", "a</w>"), ("a", "bb")])

    def split(word):
        return [tokens[i] for i in tokenizer.encode(word, 9)[0].tolist() if i]

    assert split("abba") == ["abb", "a</w>"]
    assert split("bbba") == ["bb", "b", "a</w>"]
    assert split("aaaaa") == ["aa", "aa", "a</w>"]
    assert split("aaaa") == ["aa", "aa</w>"]


def test_the_example_of_the_tokenizers_docstring_is_true(tmp_path):
    tokenizer = Tokenizer.load(publish_tokenizer(tmp_path))
    rows = tokenizer.encode(["A red circle, [UNK]ž", ""], 8)
    assert rows.dtype == torch.int64 and rows.tolist() == [[58, 121, 129, 65, 1, 1, 0, 0], [0] * 8]
    assert tokenizer.decode(rows[0]) == "a red circle , [UNK][UNK]" and tokenizer.decode(rows[1]) == ""
    assert tokenizer.encode("A red circle, [UNK]ž", 3).tolist() == [[58, 121, 129]]  # cut
    assert (tokenizer.vocab_size, tokenizer.pad, tokenizer.unknown) == (187, 0, 1)


def test_special_tokens_go_by_name_not_by_number():
    tokenizer = Tokenizer({"a</w>": 0, "[UNK]": 1, "[PAD]": 2}, [])
    assert tokenizer.encode("a ?", 4).tolist() == [[0, 1, 2, 2]] and tokenizer.decode([0, 1, 2, 2]) == "a [UNK]"


def test_a_tokenizer_loads_from_its_file_its_folder_or_the_folder_around_and_has_one_fingerprint(tmp_path):
    folder = publish_tokenizer(tmp_path / "tokenizer")
    marks = {Tokenizer.load(path).fingerprint for path in (tmp_path, folder, folder / "bpe-16k-vocab.json")}
    assert len(marks) == 1 and len(min(marks)) == 12
    others = [Tokenizer.load(publish_tokenizer(folder, pairs=PAIRS[::-1])),
              Tokenizer.load(publish_tokenizer(folder, tokens=[*TOKENS[:2], *TOKENS[:1:-1]]))]
    assert len({*marks, *(other.fingerprint for other in others)}) == 3


@pytest.mark.parametrize("name, content, message", [
    ("vocab.json", b"{", "damaged"),
    ("vocab.json", b"[1, 2]", "damaged"),
    ("vocab.json", b'{"[PAD]": 0, "a": 1}', "lacks"),
    ("vocab.json", json.dumps({token: 7 for token in TOKENS}).encode(), "not 0, 1, 2"),
    ("vocab.json", json.dumps({token: str(i) for i, token in enumerate(TOKENS)}).encode(), "not 0, 1, 2"),
    ("merges.txt", b"#version: 0.2\na b c\n", "damaged"),
    ("merges.txt", b"#version: 0.2\na\n", "damaged"),
    ("merges.txt", b"h zz\n", "lacks 'hzz'"),
    ("merges.txt", b"\xff\xfe", "damaged"),
])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path, name, content, message):
    (publish_tokenizer(tmp_path) / f"bpe-16k-{name}").write_bytes(content)
    with pytest.raises(InputError, match=f"bpe-16k-vocab.json and bpe-16k-merges.txt.*{message}") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_half_of_a_tokenizer_says_so(tmp_path):
    (publish_tokenizer(tmp_path) / "bpe-16k-merges.txt").unlink()
    with pytest.raises(InputError, match="bpe-16k-merges.txt: No such file"):
        Tokenizer.load(tmp_path)
