"""Batches of look-alikes: which captions stand beside which."""

import torch

from minclip import LookAlikes


def test_a_group_differs_from_its_first_caption_in_one_word():
    texts = torch.tensor([[1, colour, shape, place] for colour in (2, 3, 4, 5)
                          for shape in (6, 7, 8, 9) for place in (10, 11)] * 3)
    batch = texts[LookAlikes(texts).draw(20, group=5)]
    assert batch.shape == (20, 4)
    for first, *rest in batch.split(5):
        assert all((text == first).sum() == 3 for text in rest)  # the start is one of the three
    everyone = torch.cat([texts[LookAlikes(texts).draw(20, group=5)] for _ in range(50)])
    assert len(everyone.unique(dim=0)) == 32


def test_the_same_words_in_another_order_are_look_alikes():
    texts = torch.tensor([[1, a, 9, b] for a in range(2, 9) for b in range(2, 9) if a != b])
    for first, second in texts[LookAlikes(texts).draw(20, group=2)].split(2):
        assert first.tolist() == second[[0, 3, 2, 1]].tolist()


def test_short_captions_look_like_short_ones_though_long_ones_repeat_words():
    short = [[1, 3, size, colour, 2, 0, 0, 0] for size in (10, 11) for colour in range(20, 26)]
    long = [[1, 3, colour, 3, shape, 3, place, 2]
            for colour in range(20, 26) for shape in (30, 31) for place in (40, 41)]
    texts = torch.tensor(short + long)
    for first, second in texts[LookAlikes(texts).draw(len(texts), group=2)].split(2):
        assert (first == 0).sum() == (second == 0).sum()


def test_all_images_are_drawn_and_fewer_where_captions_are_few():
    texts = torch.tensor([[1, caption] for caption in (2, 2, 2, 3, 4)])
    look_alikes, drawn = LookAlikes(texts), []
    for _ in range(60):
        batch = look_alikes.draw(6, group=2)
        assert all(first.ne(second).any() for first, second in texts[batch].split(2))
        drawn += batch.tolist()
    assert set(drawn) == {0, 1, 2, 3, 4} and len(look_alikes.draw(100, group=50)) == 5 * 3
