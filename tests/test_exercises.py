"""Every exercise has its parts, and every solution applies to the present code and does what its exercise says."""

import importlib
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import data
import mindalle
import minclip
from mindalle import unclip

PAGE = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
EXERCISES = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
SOLUTIONS = {path.stem: path for path in sorted((ROOT / "docs" / "solutions").glob("*.diff"))}


def title(exercise: str) -> str:
    return exercise.split("\n")[0]


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("exercise", EXERCISES, ids=title)
def test_an_exercise_says_what_to_touch_predict_run_and_expect(exercise):
    parts = re.findall(r"^\*\*(Touch|Predict|Run|Expect|Solution)\*\*", exercise, re.MULTILINE)
    assert parts == ["Touch", "Predict", "Run", "Expect", "Solution"]


@pytest.mark.parametrize("exercise", EXERCISES, ids=title)
def test_an_exercise_names_functions_that_are_in_the_file_to_touch(exercise):
    touch = re.search(r"\*\*Touch\*\*(.*?)\*\*Predict", exercise, re.DOTALL)[1]
    files = re.findall(r"\]\(\.\./([\w/]+\.py)\)", touch)
    text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    names = re.findall(r"`(\w+)`", touch)
    assert files and names and not [name for name in names if name not in text]


def test_each_of_twelve_exercises_has_its_solution():
    links = re.findall(r"^\*\*Solution\*\*.*\]\(solutions/(\w+)\.diff\)", PAGE, re.MULTILINE)
    assert len(EXERCISES) == len(links) == 12 and sorted(links) == sorted(SOLUTIONS)


def test_a_solution_is_short():
    for name, path in SOLUTIONS.items():
        changed = [line[1:] for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"[+-](?![+-]{2} )", line)]
        assert len(changed) <= (130 if name == "maskgit" else 60) and max(map(len, changed)) <= 130, name


# -------------------------------------------------------------------------------------------------------- the solutions


@pytest.fixture(scope="session")
def applied(tmp_path_factory):
    """Apply a solution, once, to a copy of the packages that it changes -> folder(name) of that copy."""
    place = tmp_path_factory.mktemp("solutions")
    outside = os.environ | {"GIT_CEILING_DIRECTORIES": str(place.parent)}  # no repository around the copy is looked for

    def folder(name: str) -> Path:
        if not (place / name).exists():
            (place / name).mkdir()
            for top in {file.split("/")[0] for file in changed_files(name)}:
                copy = shutil.copytree if (ROOT / top).is_dir() else shutil.copy
                copy(ROOT / top, place / name / top)
            result = subprocess.run(["git", "apply", str(SOLUTIONS[name])], cwd=place / name, capture_output=True, text=True, env=outside)
            assert result.returncode == 0, f"docs/solutions/{name}.diff no longer applies: {result.stderr}"
        return place / name

    sys.path.insert(0, str(place))
    yield folder
    sys.path.remove(str(place))


@pytest.fixture
def solved(applied):
    """Import a module of a solution, under the solution's name: packages import relatively, so both versions can be loaded."""
    def load(name: str, module: str):
        applied(name)
        return importlib.import_module(f"{name}.{module}")

    return load


def changed_files(name: str) -> list[str]:
    return re.findall(r"^--- a/(\S+)", SOLUTIONS[name].read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_applies_to_the_present_code_and_what_it_leaves_compiles(name, applied):
    for file in changed_files(name):
        text = (applied(name) / file).read_text(encoding="utf-8")
        assert text != (ROOT / file).read_text(encoding="utf-8")
        compile(text, file, "exec")


def tiny_dalle(package, **options):
    torch.manual_seed(0)
    return package.DALLE(package.DALLEConfig(text_vocab=20, image_vocab=32, text_length=4, grid=4, width=32, layers=2, heads=2, **options))


def pairs(b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make captions (b 4) and codes (b 16) for tiny_dalle."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, (b, 4), generator=generator), torch.randint(32, (b, 16), generator=generator)


def test_softmax_loss_is_the_mean_of_two_one_way_losses(solved):
    losses, logits = solved("one_way", "minclip").LOSSES, 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    both = (losses["one_way"].loss(logits) + losses["one_way"].loss(rearrange(logits, "i j -> j i"))) / 2
    assert torch.isclose(both, minclip.softmax_loss(logits)) and not torch.isclose(losses["one_way"].loss(logits), both)
    equal = torch.ones(6, 6, dtype=torch.bool)
    assert losses["one_way"].loss(logits, equal) > losses["one_way"].loss(0 * logits, equal)


def test_in_the_alternate_order_each_place_touches_the_one_before(solved):
    package = solved("alternate", "mindalle")
    for grid in (1, 4, 5):
        order = package.layers.alternate(grid)
        assert order.sort().values.equal(torch.arange(grid**2))
        row, column = order // grid, order % grid
        assert ((row.diff().abs() + column.diff().abs()) == 1).all()
    model, (text, _) = tiny_dalle(package).eval(), pairs(2)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    codes = package.generate(model, text, temperature=0)
    assert model(text, codes)[1].argmax(dim=-1).equal(codes.flatten(1))  # in their places
    changed = codes.flatten(1).clone()
    changed[:, 7] += 1  # drawn right after place 3
    after = model(text, changed % 32)[1]
    assert not after[:, 6].allclose(model(text, codes)[1][:, 6]) and after[:, 3].equal(model(text, codes)[1][:, 3])


def test_a_neighbourhood_ends_at_the_edge_of_the_picture(solved):
    patterns = solved("neighbourhood", "mindalle").layers.PATTERNS
    mask, wrapped = patterns["neighbourhood"](4, 3), patterns["convolutional"](4, 3)
    assert (mask & ~wrapped).sum() == 0 and mask.diagonal().all() and not mask.triu(1).any()
    inner = [place for place in range(16) if 0 < place % 4 < 3]
    assert mask[inner].equal(wrapped[inner])
    assert wrapped[4, 3] and not mask[4, 3]  # place 4 begins the second row, place 3 ends the first


def test_min_p_keeps_codes_of_a_fraction_of_the_highest_probability(solved):
    generate = solved("min_p", "mindalle.generate")
    logits = torch.tensor([[0.5, 0.04, 0.3, 0.16]]).log()
    assert generate.keep_min_p(logits, 0.0) is logits
    assert generate.keep_min_p(logits, 0.3).isfinite().tolist() == [[True, False, True, True]]
    assert generate.keep_min_p(logits, 1.0).isfinite().tolist() == [[True, False, False, False]]
    model, (text, _) = tiny_dalle(solved("min_p", "mindalle")).eval(), pairs(3)
    greedy = generate.generate(model, text, temperature=0)
    assert generate.generate(model, text, min_p=1.0).equal(greedy) and not generate.generate(model, text).equal(greedy)
    assert solved("min_p", "common.drawing.dalle").Drawing(min_p=0.3).min_p == 0.3  # the flag --min-p


def test_a_hidden_pair_leaves_training_and_is_drawn_only_as_novel(solved):
    world, caption = solved("hidden_pair", "data"), "a large red star on a gray background"
    assert data.split_of(caption) != "novel" and world.split_of(caption) == "novel"
    scenes = [world.random_scene(random.Random(i)) for i in range(500)]
    assert not any((o.colour, o.shape) == ("red", "star") for scene in scenes for o in scene.objects)
    assert any(o.shape == "star" for scene in scenes for o in scene.objects)
    assert any((o.colour, o.shape) == ("red", "star") for i in range(200) for o in world.random_scene(random.Random(i), "novel").objects)


def test_the_z_loss_alone_feels_what_is_added_to_all_logits(solved):
    text, codes = pairs(4)
    text_logits, image_logits = (x.detach() for x in tiny_dalle(mindalle)(text, codes))
    for loss, rises in ((mindalle.dalle_loss, False), (solved("z_loss", "mindalle").dalle_loss, True)):
        plain, *parts = loss(text_logits, image_logits, text, codes)
        moved, *same = loss(text_logits + 9, image_logits + 9, text, codes)
        assert torch.allclose(torch.stack(parts), torch.stack(same), atol=1e-5) and (moved - plain > 0.01) == rises
    weighted = (plain - parts[0] / 8 - parts[1] * 7 / 8) / 1e-4
    assert math.sqrt(weighted) == pytest.approx(math.log(25), abs=0.5)  # untrained: near ln 20 for text, ln 32 for codes


def test_without_positions_only_the_predecessor_tells_word_order(solved):
    ids = torch.tensor([[0, 1, 2, 3, 15], [0, 3, 2, 1, 15]])  # a above b, b above a
    for package, differ in ((minclip, False), (solved("predecessor", "minclip"), True)):
        torch.manual_seed(0)
        config = package.CLIPConfig(text_width=32, text_layers=1, text_heads=2, context_length=8, vocab_size=16, embed_dim=8)
        model = package.CLIP(config)
        model.text_encoder.positions.data.zero_()
        one, other = model.encode_text(ids)
        assert torch.allclose(one, other, atol=1e-5) != differ
        assert torch.allclose(model.encode_text(F.pad(ids, (0, 2))), model.encode_text(ids), atol=1e-5)  # padding still changes nothing


def test_signs_make_nine_bits_of_a_code(solved):
    package = solved("signs", "minvqgan")
    torch.manual_seed(0)
    quantiser, z = package.QUANTISERS["signs"](package.VQGANConfig()), torch.randn(4, 8, 4, 4)
    signs = quantiser.signs(rearrange(torch.arange(512), "(b h w) -> b h w", h=16, w=16))
    assert signs.shape[1] == 9 and len({tuple(bits) for bits in rearrange(signs, "b s h w -> (b h w) s").tolist()}) == 512
    far = (100 * z).requires_grad_()  # where a sigmoid is exactly 0 or 1
    quantiser(far).loss.backward()
    assert far.grad.isfinite().all()
    optimiser, errors = torch.optim.Adam(quantiser.parameters(), 1e-2), []
    for _ in range(60):
        z_q, codes, loss = quantiser(z)
        assert torch.allclose(quantiser.lookup(codes), z_q, atol=1e-5) and 0 <= codes.min() and codes.max() < 512
        errors.append(F.mse_loss(z_q, z))
        optimiser.zero_grad()
        (errors[-1] + loss).backward()
        optimiser.step()
    assert errors[-1] < 0.7 < errors[0]  # 1 would be the error of zeros


def test_a_rotated_latent_has_its_codes_values_and_a_turned_gradient(solved):
    rotated = solved("rotation_trick", "minvqgan.codebook").rotated
    torch.manual_seed(0)
    z, z_q = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(2, 8, 3, 3)
    out = rotated(z, z_q)
    assert torch.allclose(out, z_q, atol=1e-5)
    (out * F.normalize(z_q, dim=1)).sum().backward()  # a gradient that only lengthens the code
    stretch = z_q.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
    assert torch.allclose(z.grad, (stretch * F.normalize(z, dim=1)).detach(), atol=1e-5)  # only lengthens the latent
    assert not torch.allclose(z.grad, F.normalize(z_q, dim=1), atol=0.1)  # which straight-through would give


def test_fading_guidance_starts_twice_as_strong_and_keeps_its_mean(solved):
    package, fading = solved("fading_guidance", "mindalle"), solved("fading_guidance", "mindalle.generate").fading
    strengths = [fading(1.5, step, 64) for step in range(64)]
    assert strengths[0] == 2 and strengths[-1] == 1 and sum(strengths) / 64 == pytest.approx(1.5) and fading(1.5, 0, 1) == 2
    model, (text, _) = tiny_dalle(package).eval(), pairs(8)
    drawn = [p.generate(model, text, temperature=0, guidance=9.0, empty=text[0]) for p in (mindalle, package)]
    assert not drawn[0].equal(drawn[1])


def test_asking_again_at_the_point_it_leads_to_inverts_more_exactly(solved):
    def denoise(x, t):  # the mean of data from N(0, 0.5²), given x(t)
        t = rearrange(t, "b -> b 1")
        return x * t * 0.25 / (t**2 * 0.25 + (1 - t) ** 2)

    noise, times = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), [0.0, 0.25, 0.5, 0.75, 0.9]
    x, errors = unclip.sample(denoise, noise, times), []
    for package in (unclip, solved("exact_inversion", "mindalle.unclip")):
        errors.append((package.invert(denoise, x, times) - noise).norm())
    assert errors[1] < errors[0] / 2


def test_a_masked_model_learns_to_fill_in_codes(solved):
    package = solved("maskgit", "mindalle")
    model, (text, codes) = tiny_dalle(package), pairs(8)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        masked = package.mask_codes(codes)
        loss, _, image_loss = package.dalle_loss(*model(text, codes, masked), text, codes, 1 / 8, masked)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert image_loss < 0.5 * math.log(32)
    first = torch.arange(16) == 0
    changed = torch.cat([codes[:, :15], (codes[:, 15:] + 1) % 32], dim=1)
    before, after = (model(text, x, repeat(first, "n -> b n", b=8))[1][:, 0] for x in (codes, changed))
    assert not torch.allclose(before, after)  # the first code depends on the last
    hidden = torch.where(first, (codes + 1) % 32, codes)
    assert model(text, hidden, repeat(first, "n -> b n", b=8))[1][:, 0].equal(before)  # but not on itself


def test_a_masked_model_draws_all_codes_in_eight_steps(solved):
    package = solved("maskgit", "mindalle")
    model, (text, codes) = tiny_dalle(package).eval(), pairs(3)
    prime = rearrange(codes, "b (r g) -> b r g", g=4)[:, :1]
    steps = [*package.generate_steps(model, text, top_k=2, guidance=1.5, empty=text[0], prime=prime)]
    assert len(steps) == 8 and all(step[:, :4].equal(codes[:, :4]) for step in steps)
    changes = [(a != b).sum().item() for a, b in zip(steps, steps[1:])]
    assert changes[-1] < changes[0]  # what is sure stays
