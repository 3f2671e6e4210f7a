"""What the README and the layout promise, held against the code."""

import ast
import dataclasses
import re
import shlex
import shutil
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
from common.run.flags import command
from common.training.muon import balance, orthogonalise
from mindalle import unclip

PACKAGES = ("minclip", "minvqgan", "mindalle")
ALONE = (*PACKAGES, "data")  # what imports nothing else of ours
OURS = {*ALONE, "common", "benchmarks", "train", "sample"}
MAY_IMPORT = {"common": {*ALONE, "common"}, "benchmarks": {*ALONE, "common", "benchmarks", "tests"}, **{name: {name} for name in ALONE}}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def sources(folder: str) -> list[Path]:
    """List the files of a folder; `python -m data` is a script, which may import what it needs."""
    return [path for path in (ROOT / folder).rglob("*.py") if path.name != "__main__.py"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way_and_nobody_imports_a_script(folder):
    assert sources(folder)
    for path in sources(folder):
        assert imports(path) & OURS <= MAY_IMPORT[folder], path


@pytest.mark.parametrize("package", ALONE)
def test_a_package_imports_nothing_but_the_standard_library_torch_and_einops(package):
    for path in sources(package):
        optional = {"pyarrow"} if path.name == "archives.py" else set()
        assert imports(path) <= set(sys.stdlib_module_names) | {"torch", "einops", "numpy", "PIL"} | optional, path


def test_a_package_works_when_copied_alone_into_an_empty_folder(tmp_path):
    for package in ALONE:
        shutil.copytree(ROOT / package, tmp_path / package / package)
    code = ("import importlib, sys; path = sys.path[1:]\n"  # without the folder that Python was started in
            f"for package in {ALONE}:\n"
            f"    sys.path = [f'{tmp_path}/{{package}}', *path]; module = importlib.import_module(package)\n"
            f"    assert module.__file__.startswith(sys.path[0]) and all(hasattr(module, name) for name in module.__all__)\n"
            f"    for name in [name for name in sys.modules if name.split('.')[0] == package]: del sys.modules[name]\n")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("package", ALONE)
def test_a_package_neither_prints_nor_seeds_nor_parses_arguments(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "torch.manual_seed", "random.seed", "input"), path


def test_the_scripts_can_be_read_in_five_minutes_and_no_file_is_long():
    for path in [*ROOT.glob("*.py"), *(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 325, (path, lines)


# A model may be on a GPU. Here the meta device stands for one: arithmetic on its tensors and the CPU's together raises.
# It has no values: no autocast, no bincount, nothing to branch on.


@pytest.fixture
def away(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "bincount", lambda x, minlength: x.new_zeros(minlength))
    return "meta"


@pytest.mark.parametrize("loss", minclip.LOSSES)
def test_a_training_step_of_clip_stays_on_the_models_device(away, loss):
    model = minclip.CLIP(minclip.CLIPConfig(vocab_size=50, context_length=8, loss=loss)).to(away)
    images, ids = torch.randn(4, 3, 32, 32).to(away), torch.randint(50, (4, 8)).to(away)
    minclip.LOSSES[loss].loss(model.logits(*model(images, ids)), minclip.same_caption(ids)).backward()
    minclip.accumulated_backward(model, images, ids, 2, minclip.same_caption(ids))
    assert all(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("options", [*({"quantiser": name} for name in minvqgan.QUANTISERS), {"l2_normalised": True}])
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


@pytest.mark.parametrize("options", [{"attention": "row,column,convolutional,full"}, {}])
def test_a_training_step_of_dalle_and_drawing_with_it_stay_on_the_models_device(away, options):
    config = mindalle.DALLEConfig(text_vocab=50, image_vocab=64, text_length=8, grid=4, **options)
    model = mindalle.DALLE(config).to(away)
    text, codes = torch.randint(50, (4, 8)).to(away), torch.randint(64, (4, 16)).to(away)
    dropped = mindalle.drop_captions(text, text[0], 0.5)
    mindalle.dalle_loss(*model(dropped, codes), dropped, codes, 0.125)[0].backward()
    assert all(p.grad.is_meta for p in model.parameters())
    assert mindalle.generate(model.eval(), text, empty=text[0], guidance=1.5, temperature=0.9, top_k=8, top_p=0.9).is_meta


def test_training_steps_of_prior_and_decoder_and_drawing_with_them_stay_on_the_models_device(away):
    prior, decoder = unclip.Prior(unclip.PriorConfig(layers=1)).to(away), unclip.Decoder(unclip.DecoderConfig()).to(away)
    z, images = torch.randn(4, 128).to(away), torch.randn(4, 3, 32, 32).to(away)
    read = (torch.randn(4, 16, 64).to(away), torch.ones(4, 16, dtype=torch.bool).to(away), z)
    for model, x, condition in ((prior, z, read), (decoder, images, (z,))):
        empty = tuple(part[0] for part in condition)
        t = unclip.random_times(4).to(away)
        noised = unclip.mix(x, torch.randn_like(x), t)
        unclip.denoising_loss(model(noised, t, *unclip.drop_condition(condition, empty, 0.5)), x, t).backward()
        assert all(p.grad.is_meta for p in model.parameters())
        denoise = unclip.guided(model, condition, empty, 2.0)
        assert unclip.sample(denoise, unclip.invert(denoise, x, [0.0, 0.5, 1.0]), [0.0, 0.5, 1.0], eta=1.0).is_meta
    assert unclip.draw_embeddings(prior, read, empty=tuple(part[0] for part in read), steps=2).is_meta


def test_the_steps_of_muon_stay_on_their_device():
    updates = orthogonalise(torch.ones(2, 3, 4, device="meta"))
    assert balance(updates, list(torch.zeros(2, 3, 1, device="meta"))).is_meta


def source_of(package: str, name: str, file: str = "layers.py") -> str:
    source = (ROOT / package / file).read_text(encoding="utf-8")
    return next(ast.get_source_segment(source, node) for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)


def test_the_twins_called_attention_weights_are_equal_to_the_letter():
    assert source_of("minclip", "attention_weights") == source_of("mindalle", "attention_weights")


def test_the_twins_called_option_are_equal_to_the_letter():
    assert len({source_of(package, "option", "model.py") for package in PACKAGES}) == 1


def test_all_packages_have_the_same_error():
    assert len({(ROOT / package / "errors.py").read_text(encoding="utf-8") for package in ALONE}) == 1


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
        "README.md", "LICENSE", "pyproject.toml", "train.py", "sample.py", "data", "common", "benchmarks", "tests", "docs", *PACKAGES}


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(script: str) -> list[list[str]]:
    """Collect a script's commands from the code of all documents."""
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    code = "\n".join(block or span for block, span in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))
    lines = re.findall(rf"^(?:.*&& )?\S*python {script}\.py ?(.*)$", code, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_training_command_of_the_documents_parses():
    assert len(commands("train")) > 20
    for words in commands("train"):
        train.parse([word for word in words if word != "--help"])


def test_every_sampling_command_of_the_documents_parses():
    assert len(commands("sample")) > 20
    for words in commands("sample"):
        if words and not words[0].isupper():  # `python sample.py COMMAND`
            sample.parser().parse_args(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_resolves(document):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        assert (document.parent / link).exists(), link


def test_the_readme_is_one_chapter_and_shows_the_library():
    assert len(README.split()) <= 1500 and "```python\n" in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_a_document_runs_on_a_run(document, trained, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shapes").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        code = code.replace("a large blue ring on a gray background", "picture number 3")  # which this small run was trained on
        exec(compile(code, document.name, "exec"), {})


def test_every_field_of_every_config_and_recipe_has_a_help_text():
    for _, config, recipe, _ in train.MODELS.values():
        for field in [*dataclasses.fields(config), *dataclasses.fields(recipe)]:
            assert field.metadata.get("help"), field.name


def test_a_printed_command_survives_the_shell():
    words = ["--run", "a run; $HOME 'quoted'"]
    assert shlex.split(command("train.py", *words))[2:] == words
