"""Use a trained CLIP: zero-shot classification, search, and recall [CLIP sec. 3.1].

    labels -> prompts -> text features, their mean per label (labels e) --+-> logits -> softmax
    images -> image features (b e) ---------------------------------------+         (b labels)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

from .errors import InputError
from .loss import diagonal
from .model import CLIP
from .tokenizer import Tokenizer

# for photographs and published weights; other captions need templates that look like them
TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a close-up photo of a {}.",
    "a drawing of a {}.",
    "itap of a {}.",  # "I took a picture", as captions on the web say
)


@torch.no_grad()
def class_embeddings(model: CLIP, tokenizer: Tokenizer, labels: Sequence[str],
                     templates: Sequence[str] = ("{}",)) -> Tensor:
    """Embed each label as the mean direction of its prompts [CLIP sec. 3.1.4].

    A template is a sentence with {} in place of the label, or else raises InputError; the default
    is the label alone. Prompts are normalised before the mean, so that all have the same weight.
    returns: unit vectors (labels e)
    """
    for template in templates:
        if "{}" not in template:
            raise InputError(f"the template {template!r} has no place for the label: "
                             "write {} there")
    means = []
    for label in labels:
        prompts = [template.replace("{}", label) for template in templates]
        ids = tokenizer.encode(prompts, model.config.context_length).to(model.logit_scale.device)
        features = F.normalize(model.encode_text(ids).float(), dim=-1)    # (templates e)
        means.append(reduce(features, "templates e -> e", "mean"))
    return F.normalize(torch.stack(means), dim=-1)


@torch.no_grad()
def classify(model: CLIP, images: Tensor, embeddings: Tensor) -> Tensor:
    """Classify images (b 3 h w) by class embeddings (labels e) -> probabilities (b labels)."""
    features = F.normalize(model.encode_image(images).float(), dim=-1)
    return model.logits(features, embeddings).softmax(dim=-1)             # a bias cancels


def search(query_embedding: Tensor, index_embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the embeddings (n e) closest to a query (e) -> cosines, indices (count), best first.

    Neither need be normalised; either may be images or texts. If n < count, all n are returned.
    """
    query = F.normalize(query_embedding, dim=-1)
    index = F.normalize(index_embeddings, dim=-1)
    return einsum(query, index, "e, n e -> n").topk(min(count, len(index)))


def recall_at_k(image_features: Tensor, text_features: Tensor, k: int,
                same: Tensor | None = None) -> tuple[float, float]:
    """Return how often a right answer is among the k closest: image to text, text to image.

    Features (n e) of both, row i of one belonging to row i of the other; same (n n) boolean as in
    the losses, so that an equal caption of another image counts as a hit. Both are in [0, 1].
    """
    images, texts = (F.normalize(features, dim=-1) for features in (image_features, text_features))
    cosines = einsum(images, texts, "i e, j e -> i j")
    same = diagonal(cosines) if same is None else same

    def hits(cosines: Tensor, same: Tensor) -> float:
        closest = cosines.topk(min(k, len(cosines)), dim=1).indices       # (i k)
        return same.gather(1, closest).any(dim=1).float().mean().item()

    by_caption, same_by_caption = (rearrange(matrix, "i j -> j i") for matrix in (cosines, same))
    return hits(cosines, same), hits(by_caption, same_by_caption)
