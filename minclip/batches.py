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

POOL = 2**16  # captions among which look-alikes are sought, so that a step costs the same on a data set of any size


class LookAlikes:
    """Draw batches in groups, each a random caption and those that share most of its tokens.

    texts (n t) int64: a row of ids for each image, its caption
    """

    def __init__(self, texts: Tensor):
        self.texts, self.caption = texts.unique(dim=0, return_inverse=True)                     # (u t) different ones, (n)

    def draw(self, batch_size: int, group: int) -> Tensor:
        """Draw images -> indices (b) int64, group after group.

        No caption occurs twice in a group: equal ones are positives, not negatives. Where there are fewer captions than `group`,
        the groups are smaller; where there are fewer images than groups, the batch is.
        """
        pool = torch.randperm(len(self.texts))[:POOL]                                           # (p)
        group = min(group, batch_size, len(pool))
        order = torch.randperm(len(self.caption))                                               # (n)
        first = self.caption[order[: math.ceil(batch_size / group)]]                            # (k) a caption for each group
        has_token = torch.zeros(int(self.texts.max()) + 1, len(first))                          # (v k)
        # padding counts too, so that short captions go with short ones: a long one repeats words and would win by that
        has_token[self.texts[first], rearrange(torch.arange(len(first)), "k -> k 1")] = 1
        shared = F.embedding_bag(self.texts[pool], has_token, mode="sum")                       # (p k) tokens in common
        shared += torch.rand(len(pool), 1)  # breaks ties at random
        first = rearrange(first, "k -> k 1")
        shared = rearrange(shared, "p k -> k p").masked_fill(pool == first, -1)
        nearest = pool[shared.topk(group - 1, dim=1).indices]                                   # (k group-1)
        captions = rearrange(torch.cat([first, nearest], dim=1), "k group -> (k group)")
        image = torch.empty(len(self.texts), dtype=torch.long).scatter_(0, self.caption[order], order)  # a random one of each
        return image[captions[:batch_size]]
