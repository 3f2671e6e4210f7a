"""What the README and the layout promise, held against the code."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mindalle
import minclip
import minvqgan
import sample
import train

PACKAGES = ("minclip", "minvqgan", "mindalle")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_but_the_standard_library_torch_and_einops(package):
    for path in (ROOT / package).glob("*.py"):
        assert imports(path) <= set(sys.stdlib_module_names) | {"torch", "einops", "numpy", "PIL"}, path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_works_when_copied_alone_into_an_empty_folder(package, tmp_path):
    subprocess.run(["cp", "-r", str(ROOT / package), str(tmp_path)], check=True)
    code = f"import {package}, sys; assert {package}.__file__.startswith({str(tmp_path)!r}); print(len({package}.__all__))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_neither_prints_nor_seeds_nor_parses_arguments(package):
    for path in (ROOT / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "torch.manual_seed", "random.seed", "input"), path


# A model may be on a GPU. Here the meta device stands for one: arithmetic on its tensors and the CPU's together raises.
# It has no values: no autocast, no bincount, nothing to branch on.


@pytest.fixture
def away(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "bincount", lambda x, minlength: x.new_zeros(minlength))
    return "meta"


def test_a_training_step_of_clip_stays_on_the_models_device(away):
    model = minclip.CLIP(minclip.CLIPConfig(vocab_size=50, context_length=8)).to(away)
    images, ids = torch.randn(4, 3, 32, 32).to(away), torch.randint(50, (4, 8)).to(away)
    minclip.contrastive_loss(*model(images, ids), model.logit_scale, minclip.same_caption(ids)).backward()
    minclip.accumulated_backward(model, images, ids, 2, minclip.same_caption(ids))
    assert all(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"quantiser": "gumbel"}, {"l2_normalised": True}])
def test_a_training_step_of_vqgan_and_its_discriminator_stays_on_the_models_device(away, options):
    model, discriminator = minvqgan.VQGAN(minvqgan.VQGANConfig(**options)).to(away), minvqgan.PatchGAN(layers=2).to(away)
    images = torch.randn(4, 3, 32, 32).to(away)
    reconstruction, quantised = model(images)
    loss, _ = minvqgan.generator_loss(images, reconstruction, quantised.loss, model.last_weight, discriminator, 0.8)
    loss.backward()
    minvqgan.discriminator_loss(discriminator, images, reconstruction).backward()
    assert all(p.grad.is_meta for p in discriminator.parameters()) and model.last_weight.grad.is_meta


def test_guiding_a_picture_stays_on_the_models_device(away):
    model = minvqgan.VQGAN(minvqgan.VQGANConfig()).to(away).eval()
    score = minvqgan.prompt_score(lambda images: images.mean(dim=(2, 3)), torch.randn(2, 3).to(away), torch.ones(2).to(away))
    for start in ("codes", "noise", "blank"):
        for images in minvqgan.guide(model, score, steps=2, cutouts=2, cut_size=32, start=start, latent_noise=1.0):
            assert images.is_meta


@pytest.mark.parametrize("attention", ["full", "row,column,convolutional,full"])
def test_a_training_step_of_dalle_and_drawing_with_it_stay_on_the_models_device(away, attention):
    config = mindalle.DALLEConfig(text_vocab=50, image_vocab=64, text_length=8, grid=4, attention=attention)
    model = mindalle.DALLE(config).to(away)
    text, codes = torch.randint(50, (4, 8)).to(away), torch.randint(64, (4, 16)).to(away)
    dropped = mindalle.drop_captions(text, text[0], 0.5)
    mindalle.dalle_loss(*model(dropped, codes), dropped, codes, 0.125)[0].backward()
    assert all(p.grad.is_meta for p in model.parameters())
    assert mindalle.generate(model.eval(), text, empty=text[0], guidance=1.5, temperature=0.9, top_k=8, top_p=0.9).is_meta


def test_orthogonalised_matrices_stay_on_their_device():
    assert train.orthogonalise(torch.ones(2, 3, 4, device="meta")).is_meta


def source_of(package: str, name: str, file: str = "layers.py") -> str:
    source = (ROOT / package / file).read_text(encoding="utf-8")
    return next(ast.get_source_segment(source, node) for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)


def test_the_twins_called_attend_are_equal_to_the_letter():
    assert source_of("minclip", "attend") == source_of("mindalle", "attend")


@pytest.mark.parametrize("name", ["fit", "describe"])
def test_the_twins_that_fit_weights_are_equal_to_the_letter(name):
    assert len({source_of(package, name, "pretrained.py") for package in PACKAGES}) == 1


@pytest.mark.parametrize("name", ["ModelCheckpoint", "read"])
def test_the_twins_that_read_a_checkpoint_are_equal_to_the_letter(name):
    assert source_of("minvqgan", name, "pretrained.py") == source_of("mindalle", name, "pretrained.py")


def test_the_top_level_holds_what_the_layout_names_and_nothing_else():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in files.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} == {
        "README.md", "LICENSE", "pyproject.toml", "data.py", "train.py", "sample.py", "tests", "docs", *PACKAGES}


def commands(script: str) -> list[list[str]]:
    code = "\n".join(block or span for block, span in re.findall(r"```\n(.*?)```|`([^`\n]+)`", README, re.DOTALL))
    lines = re.findall(rf"^(?:.*&& )?\S*python {script}\.py ?(.*)$", code, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_training_command_of_the_readme_parses():
    assert commands("train")
    for words in commands("train"):
        train.parse(words)


def test_every_sampling_command_of_the_readme_parses():
    assert commands("sample")
    for words in commands("sample"):
        sample.parser().parse_args(words)


def test_every_link_of_the_readme_to_a_file_resolves():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_field_of_every_config_and_recipe_has_a_comment_which_is_its_help():
    for config, recipe, *_ in train.MODELS.values():
        for cls in (config, recipe):
            assert set(train.comments(cls)) == {field.name for field in dataclasses.fields(cls)}
