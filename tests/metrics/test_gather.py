import numpy as np
import pytest
import torch
from forked import on_ranks

from anomaly_lab.metrics.gather import ScoreGather

NAMES = ("RLX", "RLZ")


def data(count):
    generator = torch.Generator().manual_seed(count)
    index = torch.randperm(count, generator=generator) * 2**33  # more than int32 or float32 hold
    label = (torch.arange(count) % 3 == 0).long()
    return index + 1, label, {name: torch.randn(count, generator=generator) for name in NAMES}


def feed(gather, rows, batch, tensors):
    index, label, scores = tensors
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        gather.update(index[some], label[some], {name: values[some] for name, values in scores.items()})


def expected(tensors):
    index, label, scores = tensors
    order = index.argsort()
    return [index[order].tolist(), label[order].tolist(), *(scores[name][order].double().tolist() for name in NAMES)]


def plain(gathered):
    index, label, scores = gathered
    assert [*scores] == [*NAMES]
    assert (index.dtype, label.dtype, *(values.dtype for values in scores.values())) == (
        np.int64, np.int64, np.float64, np.float64,
    )  # fmt: skip
    return [index.tolist(), label.tolist(), *(values.tolist() for values in scores.values())]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_batches_of_any_size_come_out_sorted(batch):
    tensors, gather = data(11), ScoreGather(NAMES)
    feed(gather, list(range(11)), batch, tensors)
    assert plain(gather.compute()) == expected(tensors)


def test_repeated_images_count_once_and_the_first_counts():
    gather = ScoreGather(["RLX"])
    gather.update(torch.tensor([4, 2]), torch.tensor([1, 0]), {"RLX": torch.tensor([0.5, 0.25])})
    gather.update(torch.tensor([2, 4, 7]), torch.tensor([0, 1, 1]), {"RLX": torch.tensor([9.0, 9.0, 1.0])})
    index, label, scores = gather.compute()
    assert (index.tolist(), label.tolist(), scores["RLX"].tolist()) == ([2, 4, 7], [0, 1, 1], [0.25, 0.5, 1.0])


def test_it_forgets_when_reset_and_begins_again():
    tensors, gather = data(5), ScoreGather(NAMES)
    feed(gather, [0, 1, 2], 2, tensors)
    gather.compute()
    gather.reset()
    feed(gather, list(range(5)), 2, tensors)
    assert plain(gather.compute()) == expected(tensors)


def test_no_images_at_all():
    assert plain(ScoreGather(NAMES).compute()) == [[], [], [], []]


def test_unknown_and_missing_scores():
    gather = ScoreGather(["RLX"])
    with pytest.raises(KeyError, match="RLX"):
        gather.update(torch.tensor([0]), torch.tensor([0]), {"RLZ": torch.zeros(1)})


def test_half_precision_and_gradients_are_no_matter():
    gather = ScoreGather(["RLX"])
    score = torch.tensor([0.5, 1.5], dtype=torch.bfloat16, requires_grad=True)
    gather.update(torch.tensor([1, 0], dtype=torch.int32), torch.tensor([True, False]), {"RLX": score})
    index, label, scores = gather.compute()
    assert (index.tolist(), label.tolist(), scores["RLX"].tolist()) == ([0, 1], [0, 1], [1.5, 0.5])


def gather_twice(rows, put):
    gather, tensors = ScoreGather(NAMES), data(13)
    for _ in range(2):  # a second epoch, after a reset
        gather.reset()
        feed(gather, rows, 3, tensors)
        put(plain(gather.compute()))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "shares",
    [
        [list(range(0, 13, 2)), [*range(1, 13, 2), 0]],  # padded: row 0 on both ranks
        [list(range(13)), [], []],  # only one rank has images
        [[], list(range(8)), list(range(5, 13))],  # the first has none; the others overlap
    ],
)
def test_every_rank_has_what_a_single_process_has(tmp_path, shares):
    world, found = len(shares), on_ranks(gather_twice, shares, tmp_path)
    assert sorted(rank for rank, _ in found) == sorted([*range(world)] * 2)
    assert all(value == expected(data(13)) for _, value in found)
