"""Fill contrastive batches with hard negatives: captions that differ in a single word, or only in their order.

    batch of 8, group 4     a red star above a blue cross      first caption of a group, drawn at random
                            a red cross above a blue star      three that share most of its tokens
                            a red star above a green cross
                            a pink star above a blue cross
                            a small cyan ring                  next group
                            ...

In a batch drawn at random, colours and positions separate almost any two captions. The loss is near zero before the model
can tell a star from a cross. It learns that from captions that differ in nothing else, and it learns that a star above a
cross is not a cross above a star from captions that differ only in order. Those are rare, so the pool that a batch is drawn
from must be large, and the groups small.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

POOL = 2**13  # captions among which look-alikes are sought: all that 2 ms allow


def look_alikes(texts: Tensor, batch_size: int, group: int) -> Tensor:
    """Draw a batch in groups, each a random caption and those that share most of its tokens.

    texts (n t) int64, a row of ids per caption -> indices (b) int64, group after group. Captions equal to the first of
    their group are left out: they are positives, not negatives.
    """
    pool = torch.randperm(len(texts))[:POOL]
    texts, group = texts[pool], min(group, batch_size)                                          # (n t)
    first = texts[: math.ceil(batch_size / group)]                                              # (k t) k groups
    has_token = torch.zeros(int(texts.max()) + 1, len(first))                                   # (v k)
    has_token[first, rearrange(torch.arange(len(first)), "k -> k 1")] = 1
    shared = F.embedding_bag(texts, has_token, mode="sum")                                      # (n k) tokens in common
    shared += torch.rand(len(texts), 1)  # breaks ties at random
    # equal captions have equal hashes; comparing all their tokens instead took 40 times as long
    hashes = (texts * torch.randint(2**40, texts.shape[1:])).sum(dim=1)                         # (n)
    equal = rearrange(hashes[: len(first)], "k -> k 1") == hashes                               # (k n)
    nearest = rearrange(shared, "n k -> k n").masked_fill(equal, -1).topk(group - 1, dim=1).indices
    chosen = torch.cat([rearrange(torch.arange(len(first)), "k -> k 1"), nearest], dim=1)       # (k group)
    return pool[rearrange(chosen, "k group -> (k group)")][:batch_size]
