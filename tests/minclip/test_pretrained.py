"""Claims about the files and pictures that minclip reads, each exact or against a reference, each able to fail."""

import dataclasses
import gzip
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import minclip
import seeded
from minclip import CLIP, CLIPConfig, InputError, Tokenizer
from small_clip import CAPTIONS, SMALL, checkpoint, ids, images, model, one_seed, tokenizer  # noqa: F401, fixtures


# ---- Files ---------------------------------------------------------------------------------------


def test_a_saved_model_loads_as_the_same_function(model, images, ids, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    loaded = minclip.load(tmp_path / "clip.pt")
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(ids), model.encode_text(ids))
    nn.init.zeros_(loaded.logit_scale)  # a copy: the file stays as it is
    assert minclip.load(str(tmp_path / "clip.pt")).logit_scale == model.logit_scale


def test_a_checkpoint_written_before_there_was_a_choice_of_loss_has_the_softmax_loss(model, tmp_path):
    content = checkpoint(model)
    del content["config"]["loss"]
    torch.save(content, tmp_path / "clip.pt")
    config = minclip.load(tmp_path / "clip.pt").config
    assert config == model.config and config.loss == "softmax"


def test_a_bug_in_a_layer_shows_itself_and_does_not_blame_the_file(model, tmp_path, monkeypatch):
    torch.save(checkpoint(model), tmp_path / "clip.pt")
    monkeypatch.setattr("minclip.model.Transformer.__init__", lambda self, *sizes: self.blocks)
    with pytest.raises(AttributeError, match="blocks"):
        minclip.load(tmp_path / "clip.pt")


def test_a_file_in_the_older_format_of_torch_loads_too(model, tmp_path):
    torch.save(checkpoint(model), tmp_path / "clip.pt", _use_new_zipfile_serialization=False)
    assert minclip.load(tmp_path / "clip.pt").config == model.config


@pytest.mark.parametrize("content, what", [
    ({"kind": "vqgan", "config": {}, "weights": {}}, "a checkpoint of kind 'vqgan'"),
    ({"state_dict": {}}, "a dict with 'state_dict'"), ({}, "nothing in it"), ([1, 2], "a list"),
])
def test_a_file_of_another_kind_is_refused_with_what_it_is_and_what_is_known(content, what, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError) as refusal:
        minclip.load(tmp_path / "other.pt")
    message = str(refusal.value)
    assert "other.pt" in message and what in message and "\n" not in message
    assert all(layout in message for layout in minclip.pretrained.LAYOUTS)


@pytest.mark.parametrize("change", [
    {"config": {"unknown": 3}}, {"config": {"text_heads": 5}}, {"config": dataclasses.asdict(CLIPConfig())},
    {"weights": {}}, {"weights": None}, {"config": {"loss": "triplet"}}, {"config": {"vision_heads": 0}}, {"config": None},
])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_in_one_line(model, change, tmp_path):
    torch.save(checkpoint(model) | change, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="clip.pt") as refusal:
        minclip.load(tmp_path / "clip.pt")
    assert "\n" not in str(refusal.value)


def test_a_malicious_file_is_refused_and_does_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it-ran"),)

    torch.save({"kind": "clip", "config": Malicious()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    (tmp_path / "noise.pt").write_bytes(random.Random(0).randbytes(300))
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("zip.pt", "plain.pt", "noise.pt", "empty.pt"):
        with pytest.raises(InputError, match=name) as refusal:
            minclip.load(tmp_path / name)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path):
    (tmp_path / "clip.pt").mkdir()
    for path in (tmp_path / "missing.pt", tmp_path / ("long" * 99), tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path}/.*: [A-Z][a-z]") as refusal:
            minclip.load(path)
        assert "\n" not in str(refusal.value)


# ---- Published weights ---------------------------------------------------------------------------
# The original architectures were filled by seeded.fill, which depends on a tensor's published name and shape alone, and
# run once; the numbers below are what came out. openai/CLIP at d05afc4, mlfoundations/open_clip at 89fb801.


def openai_shapes(vision: int, text: int, embed: int, layers: tuple[int, int], patch: int, patches: int, context: int,
                  vocab: int, hidden: int | None = None) -> dict[str, tuple]:
    """List OpenAI's names and shapes, as facts about the published files: not derived from our code."""
    shapes = {"positional_embedding": (context, text), "text_projection": (text, embed), "logit_scale": (),
              "visual.class_embedding": (vision,), "visual.positional_embedding": (patches + 1, vision),
              "visual.proj": (vision, embed), "visual.conv1.weight": (vision, 3, patch, patch),
              "token_embedding.weight": (vocab, text)}
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for side, width, count, wide in (("visual.", vision, layers[0], hidden or 4 * vision), ("", text, layers[1], 4 * text)):
        for block in range(count):
            at = f"{side}transformer.resblocks.{block}"
            for name, rows, columns in (("attn.out_proj", width, width), ("mlp.c_fc", wide, width), ("mlp.c_proj", width, wide)):
                shapes |= {f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (rows,)}
            shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
    return shapes


SMALL_OPENAI = dict(vision=128, text=64, embed=32, layers=(2, 2), patch=8, patches=16, context=16, vocab=99)
SMALL_OPEN_CLIP = SMALL_OPENAI | dict(vision=160)
OPENAI_EXTRAS = {name: torch.tensor(value) for name, value in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 99))}


def filled(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    return {name: seeded.fill(name, shape) for name, shape in shapes.items()}


def assert_features(model: CLIP, image_numbers: tuple, text_numbers: tuple) -> None:
    """Hold both encoders against what the original computed: first, last, and the probe that sees every element."""
    features = model.encode_image(seeded.image(1, 3, 32)), model.encode_text(seeded.clip_ids(2, 3, 16, 99))
    for ours, (first, last, probe) in zip(features, (image_numbers, text_numbers)):
        assert ours.flatten()[:4].tolist() == pytest.approx(first, abs=1e-4)
        assert ours.flatten()[-2:].tolist() == pytest.approx(last, abs=1e-4)
        assert seeded.probe(ours) == pytest.approx(probe, abs=1e-4)


OPENAI_IMAGE = (1.710401, 3.210967, 0.3106199, -2.858905), (3.288693, -2.991224), -2.052128
OPENAI_TEXT = (-2.060569, 1.524246, -1.891435, 0.4972837), (-0.1792764, -0.4806809), -0.5794905


def test_openais_weights_give_openais_numbers(tmp_path):
    torch.save(filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS, tmp_path / "ViT.pt")
    assert_features(minclip.load(tmp_path / "ViT.pt"), OPENAI_IMAGE, OPENAI_TEXT)


class Archive(nn.Module):
    """Own tensors by nested attributes, as the modules of a published archive do."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in weights.items():
            head, _, rest = name.partition(".")
            if rest:
                nested = {n.partition(".")[2]: t for n, t in weights.items() if n.startswith(head + ".")}
                if not hasattr(self, head):
                    self.add_module(head, Archive(nested))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def half_where_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store as OpenAI does: matrices in half precision; norms, embeddings, positions and the temperature in full."""
    whole = ("ln_", "token_embedding", "positional_embedding", "class_embedding", "logit_scale")
    return {name: tensor if any(part in name for part in whole) else tensor.half() for name, tensor in weights.items()}


def test_a_torchscript_archive_in_half_precision_gives_openais_numbers_without_running_its_code(tmp_path):
    weights = half_where_published(filled(openai_shapes(**SMALL_OPENAI))) | OPENAI_EXTRAS
    torch.jit.script(Archive(weights)).save(str(tmp_path / "ViT.pt"))
    model = minclip.load(tmp_path / "ViT.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_features(model, ((1.71094, 3.212026, 0.3119245, -2.859152), (3.288689, -2.991807), -2.052238),
                    ((-2.059881, 1.523839, -1.892129, 0.4974556), (-0.1796196, -0.4808943), -0.5773402))


def test_a_torchscript_archive_that_asks_for_more_than_tensors_is_refused_by_name(tmp_path):
    torch.jit.script(Archive({"a": torch.ones(2)})).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            payload = b"\x80\x02cposix\nmkdir\n(X" + struct.pack("<I", len(b"it-ran")) + b"it-rantR."
            bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(InputError, match="bad.pt asks to run posix.mkdir"):
        minclip.load(tmp_path / "bad.pt")
    assert not os.path.exists("it-ran")


OPEN_CLIP_CONFIG = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 2, "width": 160, "head_width": 40, "patch_size": 8},
                    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2}}
OPEN_CLIP_IMAGE = (0.2381817, 4.086735, -1.180387, 1.871333), (0.8960013, -2.36826), -0.08867984
OPEN_CLIP_TEXT = (-1.577188, 1.308183, -1.019468, 0.1312651), (0.08622839, -0.7962405), -0.5747675


def write_config(folder: Path, **changes) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP_CONFIG | changes, "preprocess_cfg": {}}))


def test_an_open_clip_folder_gives_open_clips_numbers(tmp_path):
    write_config(tmp_path)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    assert_features(minclip.load(tmp_path), OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT)


def test_open_clips_quick_gelu_is_in_its_config_and_changes_the_numbers(tmp_path):
    write_config(tmp_path, quick_gelu=True)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    assert_features(minclip.load(tmp_path), ((0.2233416, 4.098789, -1.187055, 1.890183), (0.9072226, -2.37161), -0.07329671),
                    ((-1.590093, 1.318422, -1.038122, 0.1384565), (0.06581163, -0.7926863), -0.5752479))


def test_a_training_checkpoint_of_open_clip_loses_its_nesting_and_prefixes(tmp_path):
    write_config(tmp_path)
    weights = {f"module.{name}": tensor for name, tensor in filled(openai_shapes(**SMALL_OPEN_CLIP)).items()}
    weights["module.logit_scale"] = weights["module.logit_scale"].reshape(1)
    weights["module.logit_bias"] = torch.tensor(-10.0)
    torch.save({"epoch": 1, "name": "small", "state_dict": weights, "optimizer": {}}, tmp_path / "epoch_1.pt")
    model = minclip.load(tmp_path / "epoch_1.pt")
    assert_features(model, OPEN_CLIP_IMAGE, OPEN_CLIP_TEXT)
    assert model.logit_scale.shape == ()


def test_a_custom_text_clip_of_open_clip_has_its_text_encoder_under_a_prefix(tmp_path):
    write_config(tmp_path)
    names = [name if name.startswith(("visual", "logit")) else f"text.{name}" for name in openai_shapes(**SMALL_OPEN_CLIP)]
    torch.save(filled(dict(zip(names, openai_shapes(**SMALL_OPEN_CLIP).values()))), tmp_path / "epoch_1.pt")
    assert_features(minclip.load(tmp_path / "epoch_1.pt"), OPEN_CLIP_IMAGE,
                    ((0.6329471, 0.4269287, 0.4534346, -1.515893), (1.756037, 0.7992052), 1.653069))


def test_the_mlps_of_an_open_clip_model_may_have_another_width(tmp_path):
    vision = OPEN_CLIP_CONFIG["vision_cfg"] | {"width": 176, "head_width": 88, "mlp_ratio": 4.3637}
    write_config(tmp_path, vision_cfg=vision)
    torch.save(filled(openai_shapes(**SMALL_OPENAI | dict(vision=176, hidden=768))), tmp_path / "epoch_1.pt")
    assert_features(minclip.load(tmp_path / "epoch_1.pt"),
                    ((0.6866155, 0.5353321, -1.614393, -0.6810299), (2.544519, -1.414406), -0.1329905), OPEN_CLIP_TEXT)


@pytest.mark.parametrize("changes, reason", [
    ({"vision_cfg": OPEN_CLIP_CONFIG["vision_cfg"] | {"timm_model_name": "vit"}}, "asks for timm_model_name"),
    ({"vision_cfg": OPEN_CLIP_CONFIG["vision_cfg"] | {"layers": 3}}, "of another model: vision_layers 3 there, 2 in"),
    ({"text_cfg": OPEN_CLIP_CONFIG["text_cfg"] | {"pool_type": "last"}}, "asks for pool_type"),
])
def test_a_config_of_something_else_is_refused_by_name(changes, reason, tmp_path):
    write_config(tmp_path, **changes)
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path)


def test_pixels_normalised_otherwise_are_refused(tmp_path):
    content = {"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(filled(openai_shapes(**SMALL_OPEN_CLIP)), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="pixels of mean"):
        minclip.load(tmp_path)


def test_weights_with_nothing_beside_them_ask_for_a_preset_and_do_not_guess(tmp_path):
    shapes = openai_shapes(vision=768, text=64, embed=32, layers=(1, 1), patch=8, patches=16, context=16, vocab=99)
    torch.save(filled(shapes), tmp_path / "model.pt")
    with pytest.raises(InputError, match="open_clip_config.json beside them, or name a preset"):
        minclip.load(tmp_path / "model.pt")
    with pytest.raises(InputError, match="ViT-H-14 is 1280 wide, the image encoder here 768"):
        minclip.load(tmp_path / "model.pt", preset="ViT-H-14")
    with pytest.raises(InputError, match="no preset 'ViT-X': choose one of ViT-B-32"):
        minclip.load(tmp_path / "model.pt", preset="ViT-X")
    config = minclip.load(tmp_path / "model.pt", preset="ViT-B-32").config
    assert (config.vision_heads, config.text_heads, config.activation) == (12, 1, "gelu")
    assert minclip.load(tmp_path / "model.pt", preset="ViT-B/32-quickgelu").config.activation == "quick_gelu"


# Hugging Face, from transformers 5.23.0: the names as published
def hugging_face_shapes(vision: int = 128, text: int = 64, embed: int = 32, layers: tuple[int, int] = (2, 2), patch: int = 8,
                        patches: int = 16, context: int = 16, vocab: int = 99) -> dict[str, tuple]:
    shapes = {"logit_scale": (), "visual_projection.weight": (embed, vision), "text_projection.weight": (embed, text),
              "text_model.embeddings.token_embedding.weight": (vocab, text),
              "text_model.embeddings.position_embedding.weight": (context, text),
              "vision_model.embeddings.class_embedding": (vision,),
              "vision_model.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
              "vision_model.embeddings.position_embedding.weight": (patches + 1, vision)}
    for norm, width in (("text_model.final_layer_norm", text), ("vision_model.pre_layrnorm", vision), ("vision_model.post_layernorm", vision)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for side, width, count in (("vision", vision, layers[0]), ("text", text, layers[1])):
        for layer in range(count):
            at = f"{side}_model.encoder.layers.{layer}"
            linears = [(f"self_attn.{name}_proj", width, width) for name in ("k", "v", "q", "out")]
            for name, rows, columns in (*linears, ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
                shapes |= {f"{at}.{name}.weight": (rows, columns), f"{at}.{name}.bias": (rows,)}
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{at}.{norm}.weight": (width,), f"{at}.{norm}.bias": (width,)}
    return shapes


def hugging_face_config(**text) -> dict:
    """Four heads of 32, not two of 64, in the image encoder: only the config can know."""
    return {"model_type": "clip", "projection_dim": 32,
            "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 99, "eos_token_id": 2, **text},
            "vision_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], **changes) -> None:
    """Write the format, or with changes to the entry of the first tensor a lie."""
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    header[next(iter(tensors))] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


HUGGING_FACE_IMAGE = (-0.6213685, 0.8014829, 0.6875858, 0.07463169), (0.5563402, -0.1640259), 0.002717889
HUGGING_FACE_TEXT = (-1.0441, -0.9910598, 2.020156, -0.4180247), (-1.284805, 1.782638), -1.874997


def test_a_hugging_face_folder_gives_hugging_faces_numbers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config()))
    extras = {"text_model.embeddings.position_ids": torch.arange(16), "vision_model.embeddings.position_ids": torch.arange(17)}
    write_safetensors(tmp_path / "model.safetensors", filled(hugging_face_shapes()) | extras)
    assert_features(minclip.load(tmp_path), HUGGING_FACE_IMAGE, HUGGING_FACE_TEXT)


def test_the_older_pytorch_model_bin_gives_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config()))
    torch.save(filled(hugging_face_shapes()), tmp_path / "pytorch_model.bin")
    assert_features(minclip.load(tmp_path), HUGGING_FACE_IMAGE, HUGGING_FACE_TEXT)


@pytest.mark.parametrize("text, reason", [
    ({"hidden_act": "gelu"}, "its activations are quick_gelu and gelu"), ({"layer_norm_eps": 1e-6}, "eps 1e-06"),
    ({"eos_token_id": 7}, "end in id 7"), ({"hidden_size": 128}, "text_width 128 there, 64 in the weights"),
])
def test_a_hugging_face_config_that_we_cannot_follow_is_refused(text, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(**text)))
    torch.save(filled(hugging_face_shapes()), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path)


def test_a_hugging_face_config_leaves_out_what_equals_the_librarys_defaults_and_its_older_form_wins():
    sizes, chosen = minclip.pretrained.hugging_face_choices({})
    assert sizes == {"vision_width": 768, "vision_layers": 12, "text_width": 512, "text_layers": 12}
    assert chosen == {"vision_heads": 12, "text_heads": 8, "activation": "quick_gelu"}
    both = {"text_config": {"num_attention_heads": 8}, "text_config_dict": {"num_attention_heads": 16}, "vision_config_dict": None}
    assert minclip.pretrained.hugging_face_choices(both)[1]["text_heads"] == 16


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_library_transformers_saves_what_we_load_and_computes_what_we_compute(activation, tmp_path):
    transformers = pytest.importorskip("transformers")
    content = hugging_face_config(max_position_embeddings=16, hidden_act=activation, intermediate_size=256)
    vision = content["vision_config"] | {"image_size": 32, "patch_size": 8, "hidden_act": activation, "intermediate_size": 512}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=content["text_config"], vision_config=vision, projection_dim=32))
    theirs.eval().save_pretrained(tmp_path)
    ours, x, ids = minclip.load(tmp_path), seeded.image(1, 3, 32), seeded.clip_ids(2, 3, 16, 99)
    pixels = ((x + 1) / 2 - ours.image_encoder.mean) / ours.image_encoder.std
    with torch.no_grad():
        theirs_out = theirs(input_ids=ids, pixel_values=pixels)
        images, texts = ours(x, ids)
    assert ours.config.activation == activation
    assert torch.allclose(images, theirs_out.image_embeds, atol=1e-5) and torch.allclose(texts, theirs_out.text_embeds, atol=1e-5)


@pytest.mark.parametrize("lie, reason", [
    ({"data_offsets": [0, 10**9]}, "outside the file"), ({"data_offsets": [-8, 4]}, "outside the file"),
    ({"shape": [3]}, "8 bytes, which are not"), ({"shape": [-1, -2]}, "outside the file"), ({"dtype": "F8"}, "KeyError"),
])
def test_a_lying_safetensors_header_is_an_error_and_no_crash(lie, reason, tmp_path):
    write_safetensors(tmp_path / "lie.safetensors", {"a": torch.ones(2), "b": torch.ones(3)}, **lie)
    with pytest.raises(InputError, match=f"lie.safetensors.*{reason}"):
        minclip.load(tmp_path / "lie.safetensors")


def test_a_safetensors_header_longer_than_the_file_is_an_error(tmp_path):
    (tmp_path / "lie.safetensors").write_bytes(struct.pack("<Q", 2**62) + b'{"a": 1}')
    with pytest.raises(InputError, match="longer than the file"):
        minclip.load(tmp_path / "lie.safetensors")


def test_safetensors_hold_scalars_and_empty_tensors_and_every_type(tmp_path):
    tensors = {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "half": torch.ones(2).half(), "whole": torch.tensor([2**40])}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    read = minclip.files.read(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("change, reason", [
    (lambda w: w.pop("ln_final.bias"), r"text_encoder.ln_final.bias is missing"),
    (lambda w: w.update({"visual.surplus": torch.ones(2)}), "image_encoder.surplus is one too many"),
    (lambda w: w.update({"ln_final.bias": torch.ones(65)}), r"text_encoder.ln_final.bias has another shape"),
])
def test_loading_names_the_tensor_that_does_not_fit(change, reason, tmp_path):
    weights = filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS
    change(weights)
    torch.save(weights, tmp_path / "ViT.pt")
    with pytest.raises(InputError, match=f"ViT.pt looks like an archive of OpenAI but does not fit: {reason}"):
        minclip.load(tmp_path / "ViT.pt")


@pytest.mark.parametrize("name, reason", [("visual.layer1.0.conv1.weight", "is a ResNet"), ("visual.trunk.cls_token", "timm")])
def test_an_image_encoder_of_another_kind_is_refused_in_words(name, reason, tmp_path):
    torch.save({name: torch.ones(2), **(OPENAI_EXTRAS if "layer1" in name else {})}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=reason):
        minclip.load(tmp_path / "other.pt")


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(InputError, match="none of clip.pt, open_clip_model.safetensors"):
        minclip.load(tmp_path)


@pytest.mark.parametrize("name, vision, text, embed, layers, patch, patches, hidden, parameters", [
    ("ViT-B-32", 768, 512, 512, (12, 12), 32, 7**2, None, 151_277_313),
    ("ViT-B-16", 768, 512, 512, (12, 12), 16, 14**2, None, 149_620_737),
    ("ViT-L-14", 1024, 768, 768, (24, 12), 14, 16**2, None, 427_616_513),
    ("ViT-L-14-336", 1024, 768, 768, (24, 12), 14, 24**2, None, 427_944_193),
    ("ViT-H-14", 1280, 1024, 1024, (32, 24), 14, 16**2, None, 986_109_441),
    ("ViT-g-14", 1408, 1024, 1024, (40, 24), 14, 16**2, 6144, 1_366_678_273),
    ("ViT-bigG-14", 1664, 1280, 1280, (48, 32), 14, 16**2, 8192, 2_539_567_105),
])
def test_the_shapes_of_every_published_model_fit(name, vision, text, embed, layers, patch, patches, hidden, parameters):
    with torch.device("meta"):
        weights = {key: torch.empty(shape) for key, shape in openai_shapes(
            vision, text, embed, layers, patch, patches, 77, 49408, hidden).items()}
        config, weights = minclip.pretrained.from_open_clip(weights, Path("."), name)
        model = CLIP(config)
    minclip.pretrained.fit(model, weights)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    head_widths = {"ViT-H-14": 80, "ViT-g-14": 88, "ViT-bigG-14": 104}  # in open_clip's configs; OpenAI's are all 64
    assert vision / config.vision_heads == head_widths.get(name, 64) and text / config.text_heads == 64
    presets = {"ViT-B-32": CLIPConfig.vit_b_32, "ViT-B-16": CLIPConfig.vit_b_16, "ViT-L-14": CLIPConfig.vit_l_14,
               "ViT-L-14-336": CLIPConfig.vit_l_14_336}
    if name in presets:
        assert dataclasses.replace(config, activation="quick_gelu") == presets[name]()


def test_loaded_weights_lie_where_the_file_is_mapped_and_are_not_copied(tmp_path):
    weights = filled(openai_shapes(**SMALL_OPENAI)) | OPENAI_EXTRAS
    torch.save(weights, tmp_path / "ViT.pt")
    read = []
    original, minclip.pretrained.read = minclip.pretrained.read, lambda path: read.append(original(path)) or read[0]
    try:
        model = minclip.load(tmp_path / "ViT.pt")
    finally:
        minclip.pretrained.read = original
    assert model.text_encoder.token_embedding.weight.data_ptr() == read[0]["token_embedding.weight"].data_ptr()
    assert model.logit_scale.requires_grad


# CLIP's merges: the first of the published list, in its own order, and what it makes of them
FIRST_MERGES = "i n|t h|a n|r e|a r|e r|th e</w>|in g</w>|o u|o n".split("|")


@pytest.mark.parametrize("name", ["bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt", "merges.txt", "tokenizer.json", "folder"])
def test_published_merges_are_found_in_each_of_their_files(name, tmp_path):
    path = tmp_path / ("merges.txt" if name == "folder" else name)
    if name == "tokenizer.json":
        vocab = {token: i for token, i in Tokenizer(map(str.split, FIRST_MERGES)).ids.items()}
        path.write_text(json.dumps({"model": {"merges": [line.split() for line in FIRST_MERGES], "vocab": vocab}}))
    else:
        text = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *FIRST_MERGES, ""]).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    tokenizer = Tokenizer.load(tmp_path if name == "folder" else path)
    assert tokenizer.merges == [tuple(line.split()) for line in FIRST_MERGES]
    row = tokenizer.encode("the <|endoftext|>", 5)[0].tolist()
    assert row == [522, 518, 523, 523, 0]  # a marker in a text is the id, as in the published code


def test_the_library_transformers_encodes_as_we_do_with_the_same_merges(tokenizer, tmp_path):
    """Left out is what it cleans only with ftfy beside it: quotes, entities, control characters."""
    transformers = pytest.importorskip("transformers")
    ids = tokenizer.ids | {"<|startoftext|>": tokenizer.start, "<|endoftext|>": tokenizer.end}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges), ""]))
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(str(tmp_path)), Tokenizer.load(tmp_path)
    for text in ("A RED  circle!", "it's 12 stars² they'll", "naïve café 日本 😀 मानक", "x <|endoftext|> y", "", "snake_case ... 3½"):
        expected = theirs(text)["input_ids"]
        assert ours.encode(text, len(expected))[0].tolist() == expected, text


def test_a_vocabulary_in_another_order_is_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni n\nt h\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"!": 0, "in": 513}))
    with pytest.raises(InputError, match="'in' another id"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text("[3]")
    with pytest.raises(InputError, match="merges.txt is not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="has no tokenizer: looked for tokenizer.json"):
        Tokenizer.load(tmp_path / "..")


# ---- Preprocessing -------------------------------------------------------------------------------


def formula(width: int, height: int, mode: str) -> Image.Image:
    """Draw a picture from a formula: waves of another length in each channel, and a little noise."""
    generator = np.random.RandomState(1)
    y, x = np.mgrid[0:height, 0:width]
    channels = [127.5 + 100 * np.sin(x / (3 + k) + k) * np.cos(y / (4 + k)) + 20 * (generator.random_sample((height, width)) - 0.5)
                for k in range(len(Image.new(mode, (1, 1)).getbands()))]
    return Image.merge(mode, [Image.fromarray(channel.clip(0, 255).astype(np.uint8)) for channel in channels])


# mean and sum of absolute values of the normalised pixels, by torchvision's rules written out on Pillow 13
@pytest.mark.parametrize("width, height, mode, side, mean, total", [
    (100, 67, "RGB", 32, 0.1827241, 1909.676),
    (67, 101, "RGB", 32, 0.1858571, 1933.215),
    (32, 32, "RGB", 32, 0.1906719, 1931.095),
    (33, 45, "RGBA", 32, 0.1641123, 1910.375),
    (20, 15, "L", 32, 0.1808514, 2285.585),
    (51, 50, "LA", 24, 0.1738323, 1044.869),
    (301, 224, "RGB", 224, 0.1805206, 93957.98),
    (225, 400, "RGB", 224, 0.1804097, 93765.49),
])
def test_pixels_are_those_of_clips_own_preprocessing(width, height, mode, side, mean, total):
    pixels = minclip.preprocess(formula(width, height, mode), side)
    assert pixels.shape == (3, side, side) and pixels.dtype == torch.float32
    encoder = CLIP(SMALL).image_encoder
    normalised = ((pixels + 1) / 2 - encoder.mean) / encoder.std
    assert normalised.mean().item() == pytest.approx(mean, abs=2e-6)
    assert normalised.abs().sum().item() == pytest.approx(total, rel=2e-6)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (30_001, 3)])
def test_a_thread_of_a_picture_is_never_scaled_whole_before_its_centre_is_taken(monkeypatch, size):
    thread, resize, sizes = Image.new("L", size, 10), Image.Image.resize, []
    thread.paste(200, tuple(side // 2 - 1000 if side > 1000 else 0 for side in size)
                 + tuple(side // 2 + 1000 if side > 1000 else side for side in size))
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest))
    pixels = minclip.preprocess(thread, 64)
    assert len(sizes) == 1 and max(sizes[0]) <= 52 * 64
    assert pixels.shape == (3, 64, 64) and torch.equal(pixels, torch.full((3, 64, 64), 200 / 127.5 - 1))


def test_a_long_picture_gives_the_pixels_that_scaling_it_whole_would():
    long = formula(1001, 10, "RGB")
    whole = long.resize((2002, 20), Image.Resampling.BICUBIC).crop((991, 0, 1011, 20))
    pixels = minclip.preprocess(long, 20)
    assert torch.equal(((pixels + 1) * 127.5).round(), torch.from_numpy(np.array(whole)).movedim(-1, 0).float())
