"""Processes that train one model together: which one this is, and what they have to agree on.

Their number changes no number: a batch is shared out among them, and what a step needs of the whole batch is summed
over all. Alone, all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist


def rank() -> int:
    """Which process this is, from 0; the one that writes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_here() -> bool:
    """Whether this is the first process of its machine, the one that fills what the machine keeps for all."""
    return world_size() == 1 or os.environ["LOCAL_RANK"] == "0"


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of each value over the ranks, the same on all of them, bit for bit; no gradient goes through it."""
    total = values.detach()
    if world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of each value over the ranks, as `sum_over_ranks`."""
    return sum_over_ranks(values) / world_size()


def gather_rows(mine: Tensor) -> Tensor:
    """The rows of all ranks (N, ...), equally many from each, in the order in which they were dealt out."""
    if world_size() == 1:
        return mine
    shares = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(shares, mine.contiguous())
    return torch.stack(shares, 1).flatten(0, 1)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """A block that the others enter when the first rank has left it: they find what it has left on disk."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()
