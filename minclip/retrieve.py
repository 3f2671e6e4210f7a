"""Use a trained CLIP without training it further: classify by naming the classes, search, and measure both.

    labels -> prompts -> text features, averaged per label (labels e) --+
                                                                        +-- cosine -> softmax -> probabilities
    images -> image features (b e) -------------------------------------+

[CLIP secs. 3.1.2 to 3.1.4]
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

from .model import CLIP, MAX_LOGIT_SCALE
from .tokenizer import Tokenizer

# For photographs and the published weights; a model knows only the kind of sentence that it was trained on.
TEMPLATES = (
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a close-up photo of a {}.",
    "a drawing of a {}.",
    "itap of a {}.",  # "I took a picture", a habit of captions on the web
)


@torch.no_grad()
def class_embeddings(
    model: CLIP, tokenizer: Tokenizer, labels: Sequence[str], templates: Sequence[str] = ("{}",)
) -> Tensor:
    """Embed each label as the mean direction of its prompts: -> unit vectors (labels e) [CLIP sec. 3.1.4].

    A template is a sentence with {} in place of the label; the default asks with the label alone. Each prompt is
    normalised before the mean, so that all weigh the same. Raises ValueError for a template without {}.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no place for the label: put {{}} where it belongs")
    means = []
    for label in labels:
        prompts = [template.replace("{}", label) for template in templates]
        ids = tokenizer.encode(prompts, model.config.context_length).to(model.logit_scale.device)
        features = F.normalize(model.encode_text(ids).float(), dim=-1)    # (templates e)
        means.append(reduce(features, "templates e -> e", "mean"))
    return F.normalize(torch.stack(means), dim=-1)


@torch.no_grad()
def classify(model: CLIP, images: Tensor, embeddings: Tensor) -> Tensor:
    """Give each image a probability per class: images (b 3 h w), embeddings (labels e) -> (b labels), rows add up to 1."""
    features = F.normalize(model.encode_image(images).float(), dim=-1)
    scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    return (scale * einsum(features, embeddings, "b e, labels e -> b labels")).softmax(dim=-1)


def search(query_embedding: Tensor, index_embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find what lies closest to the query: (e) among (n e) -> cosines (count), indices (count), best first.

    Neither needs to be normalised; whether query and index are images or texts makes no difference. An index with
    fewer than `count` entries is returned whole.
    """
    query = F.normalize(query_embedding, dim=-1)
    index = F.normalize(index_embeddings, dim=-1)
    return einsum(query, index, "e, n e -> n").topk(min(count, len(index)))


def recall_at_k(
    image_features: Tensor, text_features: Tensor, k: int, same: Tensor | None = None
) -> tuple[float, float]:
    """Return how often a right answer is among the k closest, image to text and text to image, each in [0, 1].

    Features (n e), row i of one belonging to row i of the other; same: boolean (n n) as in contrastive_loss, so that
    an equal caption of another image is a hit as well.
    """
    n = len(image_features)
    if same is None:
        same = torch.eye(n, dtype=torch.bool, device=image_features.device)
    cosines = einsum(F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1), "i e, j e -> i j")

    def hits(cosines: Tensor, same: Tensor) -> float:
        closest = cosines.topk(min(k, n), dim=1).indices                  # (n k)
        return same.gather(1, closest).any(dim=1).float().mean().item()

    return hits(cosines, same), hits(rearrange(cosines, "i j -> j i"), rearrange(same, "i j -> j i"))
