"""Loading a CLIP: our own checkpoints, and each published layout against the original's numbers.

The original architectures were filled by seeded.fill, which depends on a tensor's published name
and shape alone, and run once; the numbers below are what came out.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import seeded
import torch
from published_clip import (OPENAI_EXTRAS, SMALL_OPEN_CLIP, SMALL_OPENAI, filled,
                            hugging_face_config, hugging_face_shapes, openai_shapes)
from small_clip import checkpoint
from torch import nn

import minclip
from minclip import CLIP, CLIPConfig, InputError

# ---- Our own checkpoints --------------------------------------------------------------------


def test_a_saved_model_loads_as_the_same_function(model, images, ids, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    loaded = minclip.load(tmp_path / "clip.pt")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(ids), model.encode_text(ids))
    nn.init.zeros_(loaded.logit_scale)  # a copy: the file stays as it is
    assert minclip.load(str(tmp_path)).logit_scale == model.logit_scale


def test_a_checkpoint_without_a_loss_has_the_softmax_loss(model, tmp_path):
    content = checkpoint(model)
    del content["config"]["loss"]
    torch.save(content, tmp_path / "clip.pt")
    config = minclip.load(tmp_path / "clip.pt").config
    assert config == model.config and config.loss == "softmax"


@pytest.mark.parametrize("change", [
    {"config": {"unknown": 3}}, {"config": {"text_heads": 5}}, {"config": {"loss": "triplet"}},
    {"config": {"vision_heads": 0}}, {"config": dataclasses.asdict(CLIPConfig())},
    {"weights": {}}, {"weights": None}, {"config": None},
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_in_one_line(model, change, tmp_path):
    torch.save(checkpoint(model) | change, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="clip.pt") as refusal:
        minclip.load(tmp_path / "clip.pt")
    assert "\n" not in str(refusal.value)


# ---- OpenAI and open_clip ---------------------------------------------------------------------


def assert_features(model: CLIP, *numbers: tuple) -> None:
    """Hold both encoders against the original: first and last values, and the probe of all."""
    images, ids = seeded.image(1, 3, 32), seeded.clip_ids(2, 3, 16, 99)
    features = model.encode_image(images), model.encode_text(ids)
    for ours, (first, last, probe) in zip(features, numbers):
        assert ours.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4)
        assert ours.flatten()[-2:].tolist() == pytest.approx(last, abs=1e-4)
        assert seeded.probe(ours) == pytest.approx(probe, abs=1e-4)


def half_where_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store as OpenAI does: matrices in half precision, the rest in full."""
    full = ("ln_", "token_embedding", "positional_embedding", "class_embedding", "logit_scale")
    return {name: tensor if any(part in name for part in full) else tensor.half()
            for name, tensor in weights.items()}


def test_openais_weights_give_openais_numbers(tmp_path):
    torch.save(filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS, tmp_path / "ViT.pt")
    assert_features(
        minclip.load(tmp_path / "ViT.pt"),
        ((1.710401, 3.210967, 0.3106199, -2.858905), (3.288693, -2.991224), -2.052128),
        ((-2.060569, 1.524246, -1.891435, 0.4972837), (-0.1792764, -0.4806809), -0.5794905))


def test_openais_weights_in_half_precision_become_float32(tmp_path):
    weights = half_where_published(filled(openai_shapes(**SMALL_OPENAI))) | OPENAI_EXTRAS
    torch.save(weights, tmp_path / "ViT.pt")
    model = minclip.load(tmp_path / "ViT.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_features(
        model, ((1.71094, 3.212026, 0.3119245, -2.859152), (3.288689, -2.991807), -2.052238),
        ((-2.059881, 1.523839, -1.892129, 0.4974556), (-0.1796196, -0.4808943), -0.5773402))


OPEN_CLIP_VISION = {"image_size": 32, "layers": 2, "width": 160, "head_width": 40, "patch_size": 8}
OPEN_CLIP_TEXT = {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2}
OPEN_CLIP_NUMBERS = (
    ((0.2381817, 4.086735, -1.180387, 1.871333), (0.8960013, -2.36826), -0.08867984),
    ((-1.577188, 1.308183, -1.019468, 0.1312651), (0.08622839, -0.7962405), -0.5747675))


def open_clip_folder(folder: Path, weights: dict, preprocess: dict = {}, **changes) -> Path:
    """Write the weights and the config of an open_clip model into a folder."""
    config = {"embed_dim": 32, "vision_cfg": OPEN_CLIP_VISION, "text_cfg": OPEN_CLIP_TEXT}
    content = {"model_cfg": config | changes, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    return folder


def test_an_open_clip_folder_gives_open_clips_numbers(tmp_path):
    folder = open_clip_folder(tmp_path, filled(openai_shapes(**SMALL_OPEN_CLIP)))
    assert_features(minclip.load(folder), *OPEN_CLIP_NUMBERS)


def test_open_clips_quick_gelu_is_in_its_config_and_changes_the_numbers(tmp_path):
    folder = open_clip_folder(tmp_path, filled(openai_shapes(**SMALL_OPEN_CLIP)), quick_gelu=True)
    assert_features(
        minclip.load(folder),
        ((0.2233416, 4.098789, -1.187055, 1.890183), (0.9072226, -2.37161), -0.07329671),
        ((-1.590093, 1.318422, -1.038122, 0.1384565), (0.06581163, -0.7926863), -0.5752479))


def test_a_training_checkpoint_of_open_clip_loses_its_nesting_and_prefixes(tmp_path):
    shapes = openai_shapes(**SMALL_OPEN_CLIP)
    weights = {f"module.{name}": tensor for name, tensor in filled(shapes).items()}
    weights["module.logit_scale"] = weights["module.logit_scale"].reshape(1)
    weights["module.logit_bias"] = torch.tensor(-10.0)
    open_clip_folder(tmp_path, {"epoch": 1, "state_dict": weights, "optimizer": {}})
    model = minclip.load(tmp_path / "open_clip_pytorch_model.bin")
    assert_features(model, *OPEN_CLIP_NUMBERS)
    assert model.logit_scale.shape == ()


def test_a_custom_text_clip_has_its_text_encoder_under_a_prefix(tmp_path):
    shapes = {name if name.startswith(("visual", "logit")) else f"text.{name}": shape
              for name, shape in openai_shapes(**SMALL_OPEN_CLIP).items()}
    text = (0.6329471, 0.4269287, 0.4534346, -1.515893), (1.756037, 0.7992052), 1.653069
    model = minclip.load(open_clip_folder(tmp_path, filled(shapes)))
    assert_features(model, OPEN_CLIP_NUMBERS[0], text)


def test_the_mlps_of_an_open_clip_model_may_have_another_width(tmp_path):
    vision = OPEN_CLIP_VISION | {"width": 176, "head_width": 88, "mlp_ratio": 4.3637}
    weights = filled(openai_shapes(**SMALL_OPENAI | dict(vision=176, hidden=768)))
    image = (0.6866155, 0.5353321, -1.614393, -0.6810299), (2.544519, -1.414406), -0.1329905
    model = minclip.load(open_clip_folder(tmp_path, weights, vision_cfg=vision))
    assert_features(model, image, OPEN_CLIP_NUMBERS[1])


@pytest.mark.parametrize("changes, reason", [
    ({"vision_cfg": OPEN_CLIP_VISION | {"timm_model_name": "vit"}}, "asks for timm_model_name"),
    ({"vision_cfg": OPEN_CLIP_VISION | {"layers": 3}}, "another model: vision_layers 3 there, 2"),
    ({"text_cfg": OPEN_CLIP_TEXT | {"pool_type": "last"}}, "asks for pool_type"),
    ({"preprocess": {"mean": [0.5, 0.5, 0.5]}}, "pixels of mean"),
])
def test_an_open_clip_config_of_something_else_is_refused_by_name(changes, reason, tmp_path):
    folder = open_clip_folder(tmp_path, filled(openai_shapes(**SMALL_OPEN_CLIP)), **changes)
    with pytest.raises(InputError, match=reason):
        minclip.load(folder)


def test_weights_without_a_config_ask_for_a_preset_and_do_not_guess(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({name: torch.zeros(shape) for name, shape in openai_shapes(
        vision=768, text=64, embed=32, layers=(1, 1), patch=8, patches=16, context=16,
        vocab=99).items()}, path)
    for preset, reason in ((None, "open_clip_config.json beside them, or name a preset"),
                           ("ViT-H-14", "ViT-H-14 is 1280 wide, the image encoder here 768"),
                           ("ViT-X", "no preset 'ViT-X': choose one of ViT-B-32")):
        with pytest.raises(InputError, match=reason):
            minclip.load(path, preset=preset)
    config = minclip.load(path, preset="ViT-B-32").config
    assert (config.vision_heads, config.text_heads, config.activation) == (12, 1, "gelu")
    assert minclip.load(path, preset="ViT-B/32-quickgelu").config.activation == "quick_gelu"


@pytest.mark.parametrize("name, vision, text, embed, layers, patch, patches, hidden, parameters", [
    ("ViT-B-32", 768, 512, 512, (12, 12), 32, 7**2, None, 151_277_313),
    ("ViT-B-16", 768, 512, 512, (12, 12), 16, 14**2, None, 149_620_737),
    ("ViT-L-14", 1024, 768, 768, (24, 12), 14, 16**2, None, 427_616_513),
    ("ViT-L-14-336", 1024, 768, 768, (24, 12), 14, 24**2, None, 427_944_193),
    ("ViT-H-14", 1280, 1024, 1024, (32, 24), 14, 16**2, None, 986_109_441),
    ("ViT-g-14", 1408, 1024, 1024, (40, 24), 14, 16**2, 6144, 1_366_678_273),
    ("ViT-bigG-14", 1664, 1280, 1280, (48, 32), 14, 16**2, 8192, 2_539_567_105),
])
def test_the_shapes_of_every_published_model_fit(name, vision, text, embed, layers, patch, patches,
                                                 hidden, parameters):
    shapes = openai_shapes(vision, text, embed, layers, patch, patches, 77, 49408, hidden)
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in shapes.items()}
        config, weights = minclip.pretrained.from_open_clip(weights, Path("."), name)
        model = CLIP(config)
    minclip.pretrained.fit(model, weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    head_widths = {"ViT-H-14": 80, "ViT-g-14": 88, "ViT-bigG-14": 104}  # OpenAI's are all 64
    assert vision / config.vision_heads == head_widths.get(name, 64)
    assert text / config.text_heads == 64
    if name == "ViT-B-32":
        assert dataclasses.replace(config, activation="quick_gelu") == CLIPConfig.vit_b_32()


# ---- Hugging Face -------------------------------------------------------------------------------


def hugging_face_folder(folder: Path, weights: dict, **text) -> Path:
    (folder / "config.json").write_text(json.dumps(hugging_face_config(**text)))
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_a_hugging_face_folder_gives_hugging_faces_numbers(tmp_path):
    extras = {"text_model.embeddings.position_ids": torch.arange(16),
              "vision_model.embeddings.position_ids": torch.arange(17)}
    assert_features(
        minclip.load(hugging_face_folder(tmp_path, filled(hugging_face_shapes()) | extras)),
        ((-0.6213685, 0.8014829, 0.6875858, 0.07463169), (0.5563402, -0.1640259), 0.002717889),
        ((-1.0441, -0.9910598, 2.020156, -0.4180247), (-1.284805, 1.782638), -1.874997))


@pytest.mark.parametrize("text, reason", [
    ({"hidden_act": "gelu"}, "its activations are quick_gelu and gelu"),
    ({"layer_norm_eps": 1e-6}, "eps 1e-06"), ({"eos_token_id": 7}, "end in id 7"),
    ({"hidden_size": 128}, "text_width 128 there, 64 in the weights"),
])
def test_a_hugging_face_config_that_we_cannot_follow_is_refused(text, reason, tmp_path):
    folder = hugging_face_folder(tmp_path, filled(hugging_face_shapes()), **text)
    with pytest.raises(InputError, match=reason):
        minclip.load(folder)


def test_a_hugging_face_config_has_the_librarys_defaults_and_an_older_form():
    sizes, chosen = minclip.pretrained.hugging_face_choices({})
    assert sizes == {"vision_width": 768, "vision_layers": 12, "text_width": 512, "text_layers": 12}
    assert chosen == {"vision_heads": 12, "text_heads": 8, "activation": "quick_gelu"}
    both = {"text_config": {"num_attention_heads": 8}, "vision_config_dict": None,
            "text_config_dict": {"num_attention_heads": 16}}
    assert minclip.pretrained.hugging_face_choices(both)[1]["text_heads"] == 16


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_saves_what_we_load_and_computes_the_same(activation, tmp_path):
    transformers = pytest.importorskip("transformers")
    content = hugging_face_config(max_position_embeddings=16, hidden_act=activation,
                                  intermediate_size=256)
    vision = content["vision_config"] | {"image_size": 32, "patch_size": 8,
                                         "hidden_act": activation, "intermediate_size": 512}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(
        text_config=content["text_config"], vision_config=vision, projection_dim=32)).eval()
    theirs.save_pretrained(tmp_path)
    ours, x, ids = minclip.load(tmp_path), seeded.image(1, 3, 32), seeded.clip_ids(2, 3, 16, 99)
    pixels = ((x + 1) / 2 - ours.image_encoder.mean) / ours.image_encoder.std
    with torch.no_grad():
        expected, (images, texts) = theirs(input_ids=ids, pixel_values=pixels), ours(x, ids)
    assert ours.config.activation == activation
    assert torch.allclose(images, expected.image_embeds, atol=1e-5)
    assert torch.allclose(texts, expected.text_embeds, atol=1e-5)


# ---- What every layout has in common ------------------------------------------------------------


@pytest.mark.parametrize("change, reason", [
    (lambda w: w.pop("ln_final.bias"), "text_encoder.ln_final.bias is missing"),
    (lambda w: w.update({"visual.surplus": torch.ones(2)}),
     "image_encoder.surplus is one too many"),
    (lambda w: w.update({"ln_final.bias": torch.ones(65)}),
     "text_encoder.ln_final.bias has another shape"),
])
def test_loading_names_the_tensor_that_does_not_fit(change, reason, tmp_path):
    weights = filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS
    change(weights)
    torch.save(weights, tmp_path / "ViT.pt")
    match = f"ViT.pt looks like an archive of OpenAI but does not fit: {reason}"
    with pytest.raises(InputError, match=match):
        minclip.load(tmp_path / "ViT.pt")


@pytest.mark.parametrize("weights, reason", [
    ({"visual.layer1.0.conv1.weight": torch.ones(2)} | OPENAI_EXTRAS, "is a ResNet"),
    ({"visual.trunk.cls_token": torch.ones(2)}, "timm"),
])
def test_an_image_encoder_of_another_kind_is_refused_in_words(weights, reason, tmp_path):
    torch.save(weights, tmp_path / "other.pt")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path / "other.pt")


def test_loaded_weights_stay_mapped_from_their_file(tmp_path, monkeypatch):
    torch.save(filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS, tmp_path / "ViT.pt")
    content = minclip.files.read(tmp_path / "ViT.pt")
    monkeypatch.setattr(minclip.pretrained, "read", lambda path: content)
    model = minclip.load(tmp_path / "ViT.pt")
    ours, theirs = model.text_encoder.token_embedding.weight, content["token_embedding.weight"]
    assert ours.data_ptr() == theirs.data_ptr() and model.logit_scale.requires_grad
