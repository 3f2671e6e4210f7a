"""Train in several processes, on several devices or machines [DDP: Li et al. 2020].

    torchrun --nproc-per-node 2 -- train.py ...     without the --, torchrun takes --run for its own

Every process draws the same batch from the same seed and takes its own part of it. Each holds the
whole model; DistributedDataParallel averages their gradients, so all take the same step. The first
process, the leader, also prints, logs, evaluates and saves. Without torchrun there is one process,
and each function here gives back what it was given.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..run.errors import USER_ERRORS, InputError, ignore_output
from ..run.folder import LEADER, RANK, WORLD


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end of the block."""
    if WORLD == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # from now on "cuda" is this one
    dist.init_process_group(backend, timeout=timedelta(days=7))  # the leader may decode for hours
    try:
        if not LEADER:
            ignore_output()
        yield
        agree(None)  # nobody leaves before the leader, to whom the others are connected
    except USER_ERRORS:
        if not LEADER:
            time.sleep(5)  # the leader most likely says the same, but torchrun would end it first
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError("another process of this training has ended; the last checkpoint is "
                             "whole: --resume continues it") from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def leader_first() -> Iterator[None]:
    """Let the leader go through this block first; the others then find the files it wrote."""
    if not LEADER:
        agree(None)
    yield
    if LEADER:
        agree(None)


def agree(value: Any) -> Any:
    """Return the leader's value, anything that can be pickled, in every process."""
    if WORLD == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def replicate(model: nn.Module) -> nn.Module:
    """Wrap a model so that each backward pass averages the gradients of all processes."""
    if WORLD == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for the option
        # a discriminator runs twice before its backward pass: a broadcast would change its buffers
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def own_part(*batch: Tensor) -> tuple[Tensor, ...]:
    """Take this process's part of each tensor (b ...) -> (b/processes ...).

    Raises InputError for a batch that does not divide evenly.
    """
    count = len(batch[0])
    if count % WORLD:
        raise InputError(f"a batch of {count} cannot be divided among {WORLD} processes: "
                         f"choose a --batch-size that divides by {WORLD}")
    part = slice(RANK * count // WORLD, (RANK + 1) * count // WORLD)
    return tuple(tensor[part] for tensor in batch)


def own_noise() -> None:
    """Give each process random numbers of its own from here to the end of the step."""
    if RANK:
        torch.manual_seed(torch.initial_seed() + RANK)


def gather(*parts: Tensor) -> tuple[Tensor, ...]:
    """Join all processes' parts (b/processes ...) -> (b ...), with gradients of the own part.

    A contrastive loss needs the whole batch: every process computes all of it.
    """
    if WORLD == 1:
        return parts
    joined = []
    for part in parts:
        found = [torch.empty_like(part) for _ in range(WORLD)]
        dist.all_gather(found, part.detach().contiguous())
        if part.requires_grad:  # the mean over the processes would shrink it: no other has a part in it
            part.register_hook(lambda gradient: WORLD * gradient)
        found[RANK] = part
        joined.append(torch.cat(found))
    return tuple(joined)


def mean(*values: Tensor) -> list[float]:
    """Average numbers () over the processes, for the log."""
    together = torch.stack([value.detach().float().cpu() for value in values])
    if WORLD > 1:
        dist.all_reduce(together)
    return (together / WORLD).tolist()
