"""Zero-shot classification, search and recall."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minclip
from minclip import InputError


def test_probabilities_are_the_softmax_of_scaled_cosines(model, images, tokenizer):
    embeddings = minclip.class_embeddings(model, tokenizer, ["red", "green", "blue"])
    nn.init.constant_(model.logit_scale, 9.0)  # counts as 100
    probabilities = minclip.classify(model, images, embeddings)
    cosines = F.normalize(model.encode_image(images), dim=-1) @ embeddings.T
    expected = (100 * cosines).softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-3, atol=1e-5)


def test_a_class_is_the_mean_direction_of_its_prompts(model, tokenizer):
    templates = ("a {}", "{} on a {}")
    embeddings = minclip.class_embeddings(model, tokenizer, ["red", "{0} %s"], templates)
    ids = tokenizer.encode(["a red", "red on a red"], 16)
    first, second = F.normalize(model.encode_text(ids), dim=-1)
    torch.testing.assert_close(embeddings[0], (first + second) / (first + second).norm())
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    assert not embeddings.requires_grad


def test_a_template_without_a_place_for_the_label_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="'a red' has no place"):
        minclip.class_embeddings(model, tokenizer, ["red"], ["a red"])
    assert all(template.count("{}") == 1 for template in minclip.TEMPLATES)


def test_search_ranks_by_cosine_whatever_the_lengths():
    index = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 0.1], [-1.0, 0.0]])
    scores, indices = minclip.search(torch.tensor([0.0, 5.0]), index, 3)
    assert indices.tolist() == [2, 1, 0]
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5, 0.0]))
    assert minclip.search(torch.tensor([0.0, 5.0]), index, 9)[1].tolist() == [2, 1, 0, 3]


def test_recall_counts_each_direction_apart():
    image = torch.tensor([[1.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.8, 0.0, 0.5]])
    # each image is closest to its own caption, yet all captions are closest to the first image
    assert minclip.recall_at_k(image, text, 1) == pytest.approx((1.0, 1 / 3))
    assert minclip.recall_at_k(image, text, 2) == (1.0, 1.0)
    assert minclip.recall_at_k(image, text, 7) == (1.0, 1.0)


def test_recall_takes_an_equal_caption_for_a_hit():
    image, text = torch.eye(3), torch.eye(3)[[1, 0, 2]]
    same = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1)).bool()
    assert minclip.recall_at_k(image, text, 1) == pytest.approx((1 / 3, 1 / 3))
    assert minclip.recall_at_k(image, text, 1, same) == (1.0, 1.0)
