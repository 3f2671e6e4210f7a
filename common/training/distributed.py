"""Train on several devices or machines at once [DDP: Li et al. 2020, sec. 2.1].

    torchrun --nproc-per-node 2 -- train.py ...     without the --, torchrun takes --run for one of its own flags

    draw the same batch, from the same seed     in every process
    share: take a part of it                    process 0, of 2: the first half
    loss and gradients                          of that part
    average: the mean of all gradients          now those of the whole batch
    step                                        in every process the same, on the same weights

So any number of processes ends with the weights of one, but for rounding. The first, the leader, also prints, logs, evaluates and saves.
Without torchrun there is one process, and each function here gives back what it was given.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..run.errors import USER_ERRORS, InputError, ignore_output

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets them
LEADER = RANK == 0


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
    dist.init_process_group(backend, timeout=timedelta(days=7))  # the leader may decode or score for hours
    try:
        if not LEADER:
            ignore_output()
        yield
        agree(None)  # nobody leaves before the leader, to whom the others are connected
    except USER_ERRORS:
        if not LEADER:
            time.sleep(5)  # the leader most likely says the same; torchrun then ends this process before it speaks
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def connection() -> Iterator[None]:
    """Make one line of what torch raises when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise InputError("another process of this training has ended; the last checkpoint is whole: --resume continues it") from error


@contextmanager
def leader_first() -> Iterator[None]:
    """Let the leader go through this block before the others, which then find the files that it wrote."""
    if WORLD > 1 and not LEADER:
        agree(None)
    yield
    if WORLD > 1 and LEADER:
        agree(None)


def agree(value: Any) -> Any:
    """Return the leader's value, anything that can be pickled, in every process."""
    if WORLD == 1:
        return value
    values = [value]
    with connection():
        dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def share(*batch: Tensor) -> tuple[Tensor, ...]:
    """Take this process's part of each tensor (b ...) -> (b/processes ...). Raises InputError if they do not share evenly."""
    count = len(batch[0])
    if count % WORLD:
        raise InputError(f"a batch of {count} cannot be shared among {WORLD} processes: choose a --batch-size that divides by {WORLD}")
    part = slice(RANK * count // WORLD, (RANK + 1) * count // WORLD)
    return tuple(tensor[part] for tensor in batch)


class Gather(torch.autograd.Function):
    """Join everyone's part of a batch, (b/processes ...) -> (b ...). Backwards: what all losses together say of the own part."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(WORLD)]
        with connection():
            dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        with connection():
            dist.all_reduce(gradient)
        return share(gradient)[0]


def gather(*parts: Tensor) -> tuple[Tensor, ...]:
    """Join everyone's parts, with gradients: (b/processes ...) -> (b ...). A contrastive loss needs the whole batch."""
    return parts if WORLD == 1 else tuple(Gather.apply(part) for part in parts)


def gather_rows(rows: Tensor) -> Tensor:
    """Join everyone's rows (n ...) -> (n·processes ...), without gradients: what a codebook has to see."""
    return gather(rows.detach())[0]


def average(model: nn.Module) -> None:
    """Replace every .grad by its mean over the processes. They travel as one vector: a message costs more than its content."""
    if WORLD == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / WORLD
    with connection():
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def mean(*values: Tensor) -> list[float]:
    """Average numbers () over the processes, for the log."""
    together = torch.stack([value.detach().float().cpu() for value in values])
    if WORLD > 1:
        with connection():
            dist.all_reduce(together)
    return (together / WORLD).tolist()


def same_weights(model: nn.Module) -> None:
    """Give every process the leader's weights and buffers: their machines may round differently."""
    for tensor in model.state_dict().values() if WORLD > 1 else ():
        with connection():
            dist.broadcast(tensor, 0)
