"""The same work on several processes that train or score together, forked from one that has imported torch."""

import faulthandler
import queue
import traceback

import torch.distributed as dist
import torch.multiprocessing as mp

from anomaly_lab.launch import join

_PATIENCE = 60  # seconds without a result


def on_ranks(work, shares, folder):
    """What each rank of a gloo group puts: a list of (rank, value), from `work(share, put)` on each share.

    Every process has to end by itself, without an error.
    """
    context = mp.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_one, args=(work, rank, shares, folder, results)) for rank in range(len(shares))
    ]
    for process in processes:
        process.start()
    found, errors = [], []
    while len(errors) < len(shares):
        try:
            rank, value = results.get(timeout=_PATIENCE)
        except queue.Empty:
            for process in processes:
                process.kill()
            raise AssertionError(f"nothing came in {_PATIENCE} s; stderr has where each process stands") from None
        if isinstance(value, _End):
            errors.append(value.error and f"rank {rank}: {value.error}")
        else:
            found.append((rank, value))
    assert not any(errors), "\n".join(filter(None, errors))
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(shares)
    return found


class _End:
    """The last word of a process."""

    def __init__(self, error=None):
        self.error = error


def _one(work, rank, shares, folder, results):
    def put(value):
        faulthandler.dump_traceback_later(_PATIENCE - 10, exit=True)
        results.put((rank, value))

    faulthandler.dump_traceback_later(_PATIENCE - 10, exit=True)
    join(rank, len(shares), folder / "store")
    try:
        work(shares[rank], put)
    except BaseException:
        results.put((rank, _End(traceback.format_exc())))
        raise
    results.put((rank, _End()))
    dist.destroy_process_group()
