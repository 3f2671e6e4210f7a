"""Every layout of captioned pictures that is recognised by where files lie, and what is refused."""

import pytest

from data.layouts import LAYOUTS, read
from data.tree import list_folder
from small_folders import captions, make, refusal, splits, write


def test_class_names_that_the_layout_has_no_use_for_are_refused(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    assert refusal(tmp_path, class_names=["a", "b"]).startswith("DIR: class folders says itself what each picture is, so --class-names")


# ---- class folders ----


@pytest.mark.parametrize("names, expected", [
    (["cat/1.png", "dog/1.png"], ["cat", "dog"]),
    (["animals/cat/1.png", "animals/dog/1.png"], ["cat", "dog"]),
    (["animals/cat/1.png", "things/car/1.png"], ["cat", "car"]),
    (["cat/images/1.png", "dog/images/1.png"], ["cat", "dog"]),
    (["cat/1.png", "cat/more/2.png", "dog/1.png"], ["cat", "cat", "dog"]),
    (["set/logo.png", "set/cat/1.png", "set/dog/1.png"], ["set", "cat", "dog"]),
    (["001.Black_footed/1.png", "002.Laysan/1.png"], ["001.Black_footed", "002.Laysan"]),
    (["bus/1.png", "car/1.png", "train/1.png"], ["bus", "car", "train"]),
    (["cat/1.png"], ["cat"]),
])
def test_a_caption_is_the_nearest_folder_that_tells_pictures_apart(tmp_path, names, expected):
    found = read(make(tmp_path, *names))
    assert captions(found) == {name: [caption] for name, caption in zip(names, expected)}
    assert set(splits(found).values()) == {None}


@pytest.mark.parametrize("train, held_out", [
    ("train", "test"), ("Training", "Validation"), ("data/train", "data/val"), ("seg_train/seg_train", "seg_test/seg_test"),
    ("train2017", "val2017"),
])
def test_folders_named_after_splits_are_no_classes(tmp_path, train, held_out):
    found = read(make(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{held_out}/cat/1.png"))
    assert captions(found) == {f"{train}/cat/1.png": ["cat"], f"{train}/dog/1.png": ["dog"], f"{held_out}/cat/1.png": ["cat"]}
    assert splits(found) == {f"{train}/cat/1.png": "train", f"{train}/dog/1.png": "train", f"{held_out}/cat/1.png": "held-out"}


def test_a_split_of_which_one_half_is_empty_is_none(tmp_path):
    found = read(make(tmp_path, "train/cat/1.png", "train/dog/1.png"))
    assert captions(found) == {"train/cat/1.png": ["cat"], "train/dog/1.png": ["dog"]}
    assert set(splits(found).values()) == {None}


def test_what_lies_in_neither_split_is_left_out(tmp_path):
    found = read(make(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/dog/1.png", "extra/dog/3.png"))
    assert "extra/dog/3.png" not in captions(found) and found.left_out == [("in no split", "extra/dog/3.png")]


def test_pictures_that_lie_loose_beside_class_folders_have_no_caption(tmp_path):
    found = read(make(tmp_path, "cat/1.png", "dog/1.png", "loose.png"))
    assert found.left_out == [("no caption", "loose.png")]


def test_the_line_counts_what_is_used_and_left_out(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "loose.png")
    write(tmp_path, {"notes.doc": "", "dog/Thumbs.db": ""})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert read(tmp_path).line == ("class folders: 2 images, 2 captions; left out: 2 other suffix; left out: 1 broken link; "
                                   "left out: 1 no caption")


# ---- text files ----


@pytest.mark.parametrize("picture, text", [
    ("1.png", "1.txt"), ("a/1.png", "a/1.txt"), ("1.png", "captions/1.txt"), ("images/a/1.png", "text/a/1.txt"),
    ("CUB/images/a/1.png", "CUB/text_c10/a/1.txt"), ("train/images/1.png", "train/captions/1.txt"),
    ("images/train/1.png", "Texts/train/1.txt"), ("images/1.png", "images/text/1.txt"),
])
def test_a_text_file_lies_beside_its_picture_or_in_a_parallel_folder(tmp_path, picture, text):
    make(tmp_path, picture)
    found = read(write(tmp_path, {text: "\ufeffa cat\n\n  ein Kätzchen \n"}))
    assert captions(found) == {picture: ["a cat", "ein Kätzchen"]}
    assert found.line == "text files, one a picture: 1 images, 2 captions"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_may_be_written_in_the_encodings_of_windows(tmp_path, encoding):
    make(tmp_path, "1.png")
    (tmp_path / "1.txt").write_text("ein Käfer\n\n a beetle\n", encoding=encoding)
    assert captions(read(tmp_path)) == {"1.png": ["ein Käfer", "a beetle"]}


def test_files_of_boxes_in_labels_are_no_captions(tmp_path):
    make(tmp_path, "images/1.png")
    write(tmp_path, {"labels/1.txt": "0 0.5 0.5 0.1 0.1"})
    assert captions(read(tmp_path, layout="classes")) == {"images/1.png": ["images"]}
    assert "is not of the layout text" in refusal(tmp_path, layout="text")


def test_a_blank_text_is_no_caption(tmp_path):
    make(tmp_path, "1.png", "2.png", "3.png")
    found = read(write(tmp_path, {"1.txt": "a cat", "2.txt": " \n"}))
    assert captions(found) == {"1.png": ["a cat"]} and found.left_out == [("no caption", "2.png"), ("no caption", "3.png")]


def test_text_files_take_their_split_from_the_folders(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png")
    found = read(write(tmp_path, {"train/1.txt": "a cat", "test/1.txt": "a dog"}))
    assert splits(found) == {"train/1.png": "train", "test/1.png": "held-out"}


# ---- several layouts, none, doubtful ones ----


def test_of_two_layouts_the_richer_wins_and_the_line_names_the_other(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, {"captions.csv": "image,caption\ncat/1.png,a fat cat\ndog/1.png,a dog\n"})
    assert read(tmp_path).line == "captions.csv (image, caption): 2 images, 2 captions; not used: class folders"
    assert captions(read(tmp_path, layout="classes")) == {"cat/1.png": ["cat"], "dog/1.png": ["dog"]}


def test_a_folder_of_pictures_under_a_table_is_no_other_layout(tmp_path):
    make(tmp_path, "Images/1.png")
    assert read(write(tmp_path, {"captions.csv": "image,caption\n1.png,a cat\n"})).others == []


def test_one_caption_for_many_pictures_needs_a_named_layout(tmp_path):
    make(tmp_path, *(f"photos/{i}.png" for i in range(9)))
    assert refusal(tmp_path) == ("DIR was read as class folders, which gives all 9 pictures the one caption 'photos'; if that is "
                                 f"meant, or they lie there in another way, say so by --layout {'|'.join(LAYOUTS)}")
    assert len(read(tmp_path, layout="classes").pictures) == 9
    (tmp_path / "photos" / "8.png").unlink()
    assert len(read(tmp_path).pictures) == 8


def test_an_absent_or_unknown_layout_is_refused_with_the_choices(tmp_path):
    make(tmp_path, "cat/1.png")
    choices = ", ".join(LAYOUTS)
    assert refusal(tmp_path, layout="tar") == f"DIR is not of the layout tar; choose another of {choices}, or leave --layout out"
    assert refusal(tmp_path, layout="zip") == f"there is no layout 'zip'; choose one of {choices}"


def test_pictures_without_captions_are_refused_with_the_ways_to_give_some(tmp_path):
    make(tmp_path, "1.png")
    assert refusal(tmp_path) == ("DIR holds images without captions; write NAME.txt beside each NAME.png, or a metadata.csv "
                                 "(file_name,text), or sort them into one sub-folder per class")
    write(tmp_path, {"metadata.csv": "file_name,text\n"})
    assert "holds images without captions" in refusal(tmp_path)


def test_a_folder_without_pictures_or_no_folder_at_all_is_refused(tmp_path):
    assert refusal(tmp_path).startswith("DIR holds no images; put PNG, JPEG")
    assert refusal(tmp_path / "no").startswith("DIR is not a folder")
    assert refusal("x\0x").endswith("is not a folder; give one of captioned images, or the word shapes")


def test_a_picture_is_either_used_or_left_out_never_both(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png", "train/2.png", "loose.png")
    found = read(write(tmp_path, {"train/metadata.csv": "file_name,text\n1.png,a cat\n",
                                  "test/metadata.csv": "file_name,text\n1.png,a dog\n"}))
    used, left = set(captions(found)), [name for _, name in found.left_out]
    assert sorted([*used, *left]) == list_folder(tmp_path).images and len(left) == len(set(left))


def test_a_compressed_shard_is_refused_with_what_to_do(tmp_path):
    write(tmp_path, {"0.tar.gz": ""})
    assert refusal(tmp_path) == ("DIR/0.tar.gz is compressed, so no picture can be found in it without unpacking all before it; "
                                 "run gunzip on it")
    write(tmp_path, {"cat/1.txt": "no picture"})
    make(tmp_path, "cat/1.png", "dog/1.png")
    assert len(captions(read(tmp_path))) > 0  # unpacked beside it, as torchvision leaves them
