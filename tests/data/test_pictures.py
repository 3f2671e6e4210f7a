"""Reading pictures of any kind: modes, formats, large photographs, broken files and bombs."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, features

import data
from data import decoding
from small_folders import bomb
from data.pictures import SUFFIXES, square

ROOT = Path(__file__).parents[2]


def test_tensors_and_pictures_turn_into_each_other():
    picture = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    tensor = data.to_tensor([Image.fromarray(picture)] * 2, 5)
    assert tensor.shape == (2, 3, 5, 5) and tensor.dtype == torch.float32
    assert tensor[0, 1, 2, 3] == pytest.approx(picture[2, 3, 1] / 127.5 - 1, abs=1e-6)
    assert np.array_equal(data.to_pictures(tensor)[1], picture)
    assert data.to_pictures(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2))[0, 0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("size", [(70, 41), (41, 70), (33, 100), (20, 20), (7, 9)])
def test_resizing_equals_clips_resize_then_centre_crop(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))
    short = min(size)
    whole = image.resize([32 * side // short for side in size], Image.Resampling.BICUBIC)
    left, top = (int(round((side - 32) / 2.0)) for side in whole.size)
    expected = np.asarray(whole.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(data.to_pictures(data.to_tensor([image], 32))[0], expected)


def test_a_thread_of_a_picture_is_squared_without_scaling_it_whole(monkeypatch):
    thread, resize, sizes = Image.new("RGB", (60_000, 1), (9, 8, 7)), Image.Image.resize, []
    monkeypatch.setattr(Image.Image, "resize",
                        lambda image, size, *a, **k: sizes.append(tuple(size)) or resize(image, (256, 256)))
    data.to_tensor([thread], 256)
    assert sizes == [(256, 256)]
    monkeypatch.undo()
    assert (data.to_pictures(data.to_tensor([thread], 256)) == (9, 8, 7)).all()


def test_every_image_mode_becomes_the_same_rgb(tmp_path):
    def read(name, image, **options):
        image.save(tmp_path / name, **options)
        found = data.read_image(tmp_path / name)
        assert found.mode == "RGB"
        return np.asarray(found).astype(int)

    red = Image.new("RGB", (8, 6), (200, 40, 60))
    assert (read("rgb.png", red) == (200, 40, 60)).all()
    assert (read("rgb.webp", red, lossless=True) == (200, 40, 60)).all()
    assert abs(read("rgb.JPG", red, quality=100) - (200, 40, 60)).max() <= 4
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    assert abs(read("palette.png", palette) - (200, 40, 60)).max() <= 4
    assert abs(read("cmyk.jpg", red.convert("CMYK"), quality=100) - (200, 40, 60)).max() <= 6
    assert (read("grey.png", Image.new("L", (8, 6), 90)) == 90).all()
    assert (read("bit.png", Image.new("1", (8, 6), 1)) == 255).all()


def test_transparency_lies_over_white(tmp_path):
    half = Image.new("RGBA", (8, 6), (0, 0, 0, 128))
    half.putpixel((0, 0), (0, 0, 0, 0))
    half.save(tmp_path / "alpha.png")
    found = data.read_image(tmp_path / "alpha.png")
    assert found.getpixel((0, 0)) == (255,) * 3 and abs(found.getpixel((4, 4))[0] - 127) <= 1
    Image.new("LA", (8, 6), (10, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (8, 6), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("la.png", "p.png", "key.png"):
        assert data.read_image(tmp_path / name).getpixel((3, 3)) == (255,) * 3, name


def test_16_bits_are_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name, kind in (("i16.png", np.uint16), ("i.tiff", np.int32)):  # older Pillow reads both as the second
        Image.fromarray(levels.astype(kind)).save(tmp_path / name)
        found = np.asarray(data.read_image(tmp_path / name))
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_undone_and_a_gif_gives_its_first_frame(tmp_path):
    image, exif = Image.new("RGB", (8, 6)), Image.Exif()
    exif[0x0112] = 6  # turn by 90° to see it upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert data.read_image(tmp_path / "turned.jpg").size == (6, 8)
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert data.read_image(tmp_path / "film.gif").getpixel((2, 2)) == (0, 0, 255)


def test_a_missing_image_is_named_once(tmp_path):
    with pytest.raises(data.InputError, match=r"nowhere.png cannot be read as an image \(No such file") as error:
        data.read_image(tmp_path / "nowhere.png")
    assert str(error.value).count("nowhere") == 1


def test_a_truncated_file_is_named(tmp_path):
    Image.new("RGB", (12, 10), (100, 0, 0)).save(tmp_path / "one.png")
    whole = (tmp_path / "one.png").read_bytes()
    (tmp_path / "one.png").write_bytes(whole[:-30])
    with pytest.raises(data.InputError, match="one.png cannot be read as an image"):
        data.read_image(tmp_path / "one.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpe", "jfif", "bmp", "dib", "tif", "tiff", "gif", "webp", "avif", "ppm", "pcx",
                                    "tga", "ico", "jp2", "qoi"])
def test_a_picture_in_any_common_format_is_found_and_read(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (32, 32), (200, 40, 60)).save(tmp_path / f"a.{suffix}")
    assert data.image_files(tmp_path) == [f"a.{suffix}"]
    assert abs(np.asarray(data.read_image(tmp_path / f"a.{suffix}")).astype(int) - (200, 40, 60)).max() <= 5


def test_formats_that_need_another_program_are_no_pictures(tmp_path):
    assert not SUFFIXES & {".eps", ".ps", ".pdf", ".h5", ".grib", ".bufr", ".mpg", ".wmf", ".txt", ".npz"}
    Image.new("RGB", (8, 6)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(data.InputError, match=r"a.png cannot be read as an image \(its format is unknown\)"):
        data.read_image(tmp_path / "a.png")  # Pillow would run Ghostscript on it


@pytest.mark.parametrize("levels, expected", [
    ([0, 0.5, 1], [0, 128, 255]),  # in [0, 1]: x 255
    ([0, 0.1, 0.2], [0, 26, 51]),
    ([0, 100.4, 255], [0, 100, 255]),  # in [0, 255]: as they are
    ([-1, 0, 1], [0, 128, 255]),  # else from the least to the greatest
    ([1000, 1500, 2000], [0, 128, 255]),
    ([300, 300, 300], [0, 0, 0]),
    ([float("nan"), 0.5, 1], [0, 128, 255]),
    ([float("-inf"), 0.5, float("inf")], [0, 128, 255]),
    ([float("nan")] * 3, [0, 0, 0]),
])
def test_floats_are_scaled_as_their_range_says(tmp_path, levels, expected):
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / "a.tiff")
    assert np.asarray(data.read_image(tmp_path / "a.tiff"))[0, :, 2].tolist() == expected


def test_32_bits_beyond_16_are_scaled_from_the_least_to_the_greatest(tmp_path):
    Image.fromarray(np.array([[-70000, 0, 70000]], np.int32)).save(tmp_path / "a.tiff")
    assert np.asarray(data.read_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second
def test_a_bomb_is_refused_before_any_pixel_is_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    with pytest.raises(data.InputError, match=rf"bomb.png cannot be .*{side**2} pixels\) exceeds limit of .*; scale it down"):
        data.read_image(tmp_path / "bomb.png")


def test_a_bomb_gives_one_line_and_no_warning_beside_it(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(10_000))
    code = f"import data\ntry: data.read_image({str(tmp_path / 'bomb.png')!r})\nexcept data.InputError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == "" and result.stdout.count("\n") == 1 and "100000000 pixels" in result.stdout


def broken(error):
    """Return an opener that fails."""
    def open_it():
        raise error
    return open_it


@pytest.mark.parametrize("error, reason", [
    (MemoryError(), "MemoryError"), (RecursionError("too deep"), "too deep"),
    (OSError(5, "Input/output error"), "Input/output error"), (SyntaxError("a\nb"), "a b"),
])
def test_whatever_a_decoder_raises_becomes_one_line(error, reason):
    with pytest.raises(data.InputError, match=rf"^shard.tar: 1.jpg cannot be read as an image \({reason}\); repair or remove"):
        data.read_image(broken(error), name="shard.tar: 1.jpg")
    with pytest.raises(KeyboardInterrupt):
        data.read_image(broken(KeyboardInterrupt()))


def test_what_an_opener_returns_is_read_like_any_file():
    levels = np.full((6, 8), 5, np.uint8)
    assert data.read_image(lambda: Image.fromarray(levels)).getpixel((0, 0)) == (5, 5, 5)
    with pytest.raises(data.InputError, match=r"a.tar: 1 cannot be read as an image \(its format is unknown\)"):
        data.read_image(lambda: Image.open(io.BytesIO(b"before")), name="a.tar: 1")


# ---- large photographs ----


def photograph(kind, height=960, width=1280):
    """Make a picture up: 1/f noise is as smooth as photographs are, edges are sharp, and white noise is the worst case."""
    rng = np.random.default_rng(1)
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if kind == "edges":
        image = Image.new("RGB", (width, height), "white")
        for x, y, radius, *colour in rng.integers((0, 0, 20, 0, 0, 0), (width, height, 200, 256, 256, 256), (60, 6)).tolist():
            ImageDraw.Draw(image).regular_polygon((x, y, radius), 3, x, tuple(colour))
        return image
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = [np.fft.irfft2(np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency, s=(height, width)) for _ in "rgb"]
    levels = np.stack(waves, -1)
    return Image.fromarray((128 + 50 * levels / levels.std()).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["smooth", "edges", "noise"])
@pytest.mark.parametrize("mode, turn", [("RGB", 1), ("RGB", 6), ("CMYK", 1), ("L", 8)])
def test_a_photograph_decoded_at_a_reduced_scale_looks_the_same(tmp_path, kind, mode, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    photograph(kind).convert(mode).save(tmp_path / "a.jpg", quality=90, exif=exif)
    whole = data.read_image(tmp_path / "a.jpg")
    assert whole.size == ((960, 1280) if turn > 4 else (1280, 960))
    for image_size in (32, 64, 96):
        reduced = data.read_image(tmp_path / "a.jpg", decoding.DETAIL * image_size)
        assert decoding.DETAIL * image_size <= min(reduced.size) < 960 and (reduced.width < reduced.height) == (turn > 4)
        difference = abs(square(whole, image_size).astype(int) - square(reduced, image_size))
        assert difference.mean() < 1


def test_a_reduced_scale_leaves_no_side_shorter_than_asked(tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg")
    sizes = [data.read_image(tmp_path / "a.jpg", at_least).size for at_least in (301, 151, 150, 75, 38, 37, 1)]
    assert sizes == [(400, 300), (400, 300), (200, 150), (100, 75), (100, 75), (50, 38), (50, 38)]


# ---- files ----


def test_each_file_is_listed_once_however_many_links_lead_to_it(tmp_path):
    folder, outside = tmp_path / "pictures", tmp_path / "outside"
    for path in (folder / "b" / "1.png", folder / "b" / ".hidden.png", folder / ".thumbnails" / "2.png", outside / "3.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    (folder / "a").symlink_to(folder / "b")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(outside)
    (folder / "one.png").symlink_to(folder / "b" / "1.png")
    (folder / "two.png").symlink_to(folder / ".thumbnails" / "2.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "folder.png").mkdir()
    assert data.image_files(folder) == ["b/1.png", "linked/3.png", "two.png"]
