"""Fill contrastive batches with hard negatives: captions that differ in one word or only in order.

    batch of 8, group 4     a red star above a blue cross      first of a group, drawn at random
                            a red cross above a blue star      three that share most of its tokens
                            a red star above a green cross
                            a pink star above a blue cross
                            a small cyan ring                  next group
                            ...

In a batch drawn at random, colours and positions separate almost any two captions: the loss is
near zero before the model can tell a star from a cross. It learns that from captions that differ
in nothing else, and it learns order from captions that differ only in order. Those are rare, so
the pool that a batch is drawn from must be large, and the groups small.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

POOL = 2**16  # captions to search for look-alikes: a step costs the same on a data set of any size


class LookAlikes:
    """Draw batches in groups, each a random caption and those that share most of its tokens.

    texts (n t) int64: a row of ids for each image, its caption
    """

    def __init__(self, texts: Tensor):
        self.texts, self.caption = texts.unique(dim=0, return_inverse=True)  # (u t) distinct, (n)

    def draw(self, batch_size: int, group: int) -> Tensor:
        """Draw images -> indices (b) int64, group after group.

        No caption occurs twice in a group: equal ones are positives, not negatives. With fewer
        captions than `group` the groups are smaller, with fewer images than groups the batch is.
        """
        pool = torch.randperm(len(self.texts))[:POOL]                            # (p)
        group = min(group, batch_size, len(pool))
        order = torch.randperm(len(self.caption))                                # (n)
        first = self.caption[order[: math.ceil(batch_size / group)]]             # (k) one a group
        has_token = torch.zeros(int(self.texts.max()) + 1, len(first))           # (v k)
        # Padding counts too, so that short captions go with short ones: a long one repeats words.
        group_number = rearrange(torch.arange(len(first)), "k -> k 1")
        has_token[self.texts[first], group_number] = 1
        shared = F.embedding_bag(self.texts[pool], has_token, mode="sum")        # (p k) in common
        shared += torch.rand(len(pool), 1)  # breaks ties at random
        first = rearrange(first, "k -> k 1")
        shared = rearrange(shared, "p k -> k p").masked_fill(pool == first, -1)
        nearest = pool[shared.topk(group - 1, dim=1).indices]                    # (k group-1)
        captions = rearrange(torch.cat([first, nearest], dim=1), "k group -> (k group)")
        # a random image of each caption: of several written to one place the last remains
        image = torch.empty(len(self.texts), dtype=torch.long)
        return image.scatter_(0, self.caption[order], order)[captions[:batch_size]]
