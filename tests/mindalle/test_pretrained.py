"""What loading a DALL·E and its tokenizer promises: every name is a claim, and each can fail."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

import seeded
from mindalle import (DALLE, DALLEConfig, InputError, dalle_loss, generate,
                      load)
from mindalle.pretrained import fit, from_mindalle, read
from published_dalle import published_shapes, published_yaml
from small_dalle import SMALL, each_design, small_batch, small_model


# ------------------------------------------------------------------------------------------------- pretrained


def checkpoint_of(model: DALLE, **changes) -> dict:
    config, weights = dataclasses.asdict(model.config), model.state_dict()
    return {"kind": "dalle", "config": config, "weights": weights, "step": 7, **changes}


def test_older_checkpoints_load_if_they_draw_row_by_row(tmp_path):
    model, (text, codes, _) = small_model(), small_batch()
    older = dataclasses.asdict(model.config) | {"text_loss_weight": 0.125, "order": "row_major"}
    torch.save(checkpoint_of(model, config=older), tmp_path / "dalle.pt")
    loaded = load(tmp_path / "dalle.pt")
    assert loaded.config == model.config and loaded(text, codes)[1].equal(model(text, codes)[1])
    torch.save(checkpoint_of(model, config=older | {"order": "spiral_out"}), tmp_path / "dalle.pt")
    with pytest.raises(InputError, match="draws codes in order spiral_out, this version row by row"):
        load(tmp_path / "dalle.pt")


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


@each_design
def test_a_model_built_on_the_meta_device_has_its_masks_and_angles(design):
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


def test_mindalle_loads_bare_or_masked_and_copies_only_what_it_joins(tmp_path):
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
def test_a_config_without_heads_or_with_other_sizes_is_refused(tmp_path, say, instead, message):
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
