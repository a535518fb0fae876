"""A metric on several processes, each with its share of the images."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(work, shares, folder):
    """What each rank of a gloo group puts: a list of (rank, value), from `work(share, put)` on each share.

    Every process has to end by itself, with the exit code 0.
    """
    context = mp.get_context("fork")  # torch is imported already
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_one, args=(work, rank, shares, folder, results)) for rank in range(len(shares))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(shares)
    found = []
    while not results.empty():
        found.append(results.get())
    return found


def _one(work, rank, shares, folder, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(shares))
    work(shares[rank], lambda value: results.put((rank, value)))
    dist.destroy_process_group()
