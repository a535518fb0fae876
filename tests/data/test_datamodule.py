import dataclasses
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from anomaly_lab.config import compose
from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.plan import make_plan
from anomaly_lab.data.samples import OrderedSampler, TrainingSampler
from anomaly_lab.errors import ConfigError


@pytest.fixture
def data(pictures):
    def make(seed=0, **options):
        overrides = ["dataset=folder", "dataset.image_size=32", "dataset.val_fraction=0.25"]
        config = compose("train", overrides)["dataset"] | {"root": str(pictures), "batch_size": 4} | options
        return DefectDataModule(make_plan(config), seed)

    return make


def test_a_batch_is_what_the_contract_says(data):
    batch = next(iter(data().test_dataloader()))
    assert batch["image"].dtype == torch.float32
    assert batch["image"].shape == (4, 3, 32, 32)
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["mask"].dtype == torch.uint8
    assert batch["mask"].shape == (4, 1, 32, 32)
    assert batch["label"].dtype == batch["index"].dtype == batch["tile"].dtype == torch.int64
    assert all(isinstance(text, str) for text in (*batch["path"], *batch["defect"]))


def test_the_test_list_comes_whole_and_in_order(data):
    module = data()
    batches = list(module.test_dataloader())
    index = torch.cat([batch["index"] for batch in batches])
    assert index.tolist() == list(range(len(module.plan.split.lists["test"])))
    labels = torch.cat([batch["label"] for batch in batches])
    masks = torch.cat([batch["mask"] for batch in batches])
    assert labels.sum() == 8
    assert ((masks == 1).flatten(1).any(1) == labels.bool()).all()


def test_val_holds_painted_copies_with_their_masks(data):
    module = data()
    batches = list(module.val_dataloader())
    images, masks = (torch.cat([batch[key] for batch in batches]) for key in ("image", "mask"))
    labels = torch.cat([batch["label"] for batch in batches])
    half = len(labels) // 2
    assert labels.tolist() == [0] * half + [1] * half
    changed = (images[:half] - images[half:]).abs().amax(1, keepdim=True)
    assert (changed[masks[half:] == 1] > 0).all()
    assert (masks[half:] == 1).flatten(1).any(1).all()
    again = torch.cat([batch["image"] for batch in data().val_dataloader()])
    assert torch.equal(images, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_order_and_augmentation_depend_on_seed_and_epoch_alone(data, workers):
    def epoch(number, seed=0, workers=workers):
        loader = data(seed, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(number)
        batches = list(loader)
        return torch.cat([b["index"] for b in batches]), torch.cat([b["image"] for b in batches])

    first, images = epoch(0)
    assert sorted(first.tolist()) == list(range(len(first)))
    for other in (epoch(1), epoch(0, seed=1)):
        assert not torch.equal(first, other[0])
        ordered = [images[index.argsort()] for index, images in ((first, images), other)]
        assert not torch.equal(*ordered)  # flipped otherwise
    same = epoch(0, workers=0)
    assert torch.equal(first, same[0])
    assert torch.equal(images, same[1])


def test_persistent_workers_see_each_epochs_number(data):
    loader = data(num_workers=1).train_dataloader()
    seen = []
    for number in (0, 1):
        loader.sampler.set_epoch(number)
        seen.append(torch.cat([batch["image"][batch["index"].argsort()] for batch in loader]))
    assert not torch.equal(*seen)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 17])
def test_no_training_batch_has_a_single_image_unless_there_is_only_one(length):
    drawn = list(TrainingSampler(length, 8, seed=0))
    assert len(drawn) == len(TrainingSampler(length, 8, seed=0))
    assert length == 1 or len(drawn) % 8 != 1
    assert len(drawn) >= length - 1
    assert len({index for _, index, _ in drawn}) == len(drawn)


def test_several_ranks_share_evaluation_without_repeats(monkeypatch):
    shares = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares += [key[1:] for key in OrderedSampler([2] * 10)]
    assert sorted(shares) == [(index, tile) for index in range(10) for tile in range(2)]


def test_collating_does_not_change_a_pixel(data):
    module = data()
    loader = module.test_dataloader()
    sample = loader.dataset[0, 5, 0]
    batch = next(batch for batch in loader if 5 in batch["index"])
    row = batch["image"][batch["index"].tolist().index(5)]
    np.testing.assert_array_equal((row * 255).round().byte().permute(1, 2, 0).numpy(), sample["image"])


@pytest.mark.parametrize("length", [1, 3, 5, 40])
def test_steps_per_epoch_are_kept_whatever_the_number_of_images(length):
    sampler = TrainingSampler(length, 4, seed=0, steps=6)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 24
    assert len(set(drawn)) == 24, "an image that comes again has another key, so another augmentation"
    counts = np.bincount([index for _, index, _ in drawn], minlength=length)
    assert counts.max() - counts.min() <= 1
    sampler.set_epoch(1)
    assert list(sampler) != drawn


def test_a_larger_image_is_cropped_to_train_and_tested_in_tiles(data):
    module = data(full_size=48, tile_overlap=8)
    train = next(iter(module.train_dataloader()))
    assert train["image"].shape == (4, 3, 32, 32)
    batches = list(module.test_dataloader())
    index, tile = (torch.cat([b[key] for b in batches]).tolist() for key in ("index", "tile"))
    length = len(module.plan.split.lists["test"])
    assert list(zip(index, tile, strict=True)) == [(i, t) for i in range(length) for t in range(4)]
    whole, _ = module.dataset("test").whole(0)
    assert whole.shape == (48, 48, 3)
    last = batches[0]["image"][3].permute(1, 2, 0).mul(255).round().byte().numpy()
    np.testing.assert_array_equal(last, whole[16:, 16:])


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's, see trainer.py
def test_the_pool_keeps_its_masks_to_itself(data):
    options = {"protocol": "few_labelled", "label_reserve": 2}
    two = data(learns_from=["labelled", "unlabelled"], steps_per_epoch=3, **options)
    assert two.steps == 3
    batches = [batch for batch, _, _ in two.train_dataloader()]
    assert len(batches) == 3
    for batch in batches:
        assert batch.keys() == {"labelled", "unlabelled"}
        assert (batch["unlabelled"]["mask"] == 255).all()
        assert (batch["labelled"]["mask"] != 255).any()


def test_a_method_that_wants_labels_says_where_they_are(data):
    with pytest.raises(ConfigError, match=r"learns_from=labelled.*normal_only.*few_labelled"):
        data(learns_from=["labelled"], labels="real").train_dataloader()


def test_without_labels_it_learns_from_synthetic_ones_and_says_so(data):
    module = data(learns_from=["labelled"], batch_size=6)
    assert "dataset.labels=synthetic" in module.plan.split.notes[0]
    assert {record.label for record in module.plan.stream("labelled")} == {0}
    loader = module.train_dataloader()
    batches = list(loader)
    masks, labels = (torch.cat([batch[name] for batch in batches]) for name in ("mask", "label"))
    assert ((masks == 1).flatten(1).any(1) == labels.bool()).all()
    assert 0.6 < labels.float().mean() < 1, "nine in ten, and not every defect is visible"
    again = list(data(learns_from=["labelled"], batch_size=6).train_dataloader())
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batches, again, strict=True))
    loader.sampler.set_epoch(1)
    assert not all(torch.equal(a["mask"], b["mask"]) for a, b in zip(batches, loader, strict=True))


def test_real_labels_come_often_enough_beside_synthetic_ones(data):
    options = {"protocol": "few_labelled", "label_reserve": 2, "learns_from": ["labelled"]}
    plans = {labels: data(labels=labels, **options).plan for labels in (None, "real", "synthetic", "both")}
    streams = {labels: plan.stream("labelled") for labels, plan in plans.items()}
    assert streams[None] == streams["real"]
    assert not any(record.label for record in streams["synthetic"])
    assert set(streams["both"]) == {*streams["synthetic"], *streams["real"]}
    for share in (None, 0.5):
        stream = data(labels="both", labelled_per_type=2, real_share=share, **options).plan.stream("labelled")
        real = Counter(record.path for record in stream if record.label)
        assert len(real) == 2
        assert real.total() == pytest.approx((share or 0.125) * len(stream), abs=len(real) / 2)
        assert len(set(real.values())) == 1, "none comes more often than another"
    few = data(labels="both", real_share=0.01, **options).plan.stream("labelled")
    assert len(few) == len(set(few)), "each at least once"
    assert len({plan.sha256 for plan in plans.values()}) == 1, "the split is one"
    assert [plans[labels].learns_real_labels for labels in (None, "real", "synthetic", "both")] == [
        True,
        True,
        False,
        True,
    ]


def test_what_cannot_be_synthesised_is_said(data, tmp_path):
    with pytest.raises(ConfigError, match=r"labels=both needs labelled defects too"):
        data(learns_from=["labelled"], labels="both").train_dataloader()
    with pytest.raises(ConfigError, match="synthetic_share=0"):
        data(learns_from=["labelled"], labels="synthetic", synthetic_share=0)
    for share, told in ((0, "dataset.labels=synthetic"), (1, "from 0 to 0.9")):
        with pytest.raises(ConfigError, match=f"real_share={share} .*{told}"):
            data(learns_from=["labelled"], labels="both", real_share=share)
    plan = data(learns_from=["labelled"], labels="synthetic").plan
    none = dataclasses.replace(
        plan, split=dataclasses.replace(plan.split, lists={"labelled": plan.split.lists["test"][-2:]})
    )
    with pytest.raises(ConfigError, match="there are none to train on"):
        dataclasses.replace(none, load=dataclasses.replace(plan.load, labels="both")).stream("labelled")


def test_defects_are_put_onto_crops_of_large_images(data):
    module = data(learns_from=["labelled"], full_size="native", image_size=16, synthetic_share=1.0)
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    shares = (batch["mask"] == 1).float().mean((1, 2, 3))
    assert ((shares > 0) & (shares < 0.9)).any()


def test_more_labels_leave_the_test_and_the_pool_alone(data):
    options = {"protocol": "few_labelled", "label_reserve": 3}
    one, three = (data(labelled_per_type=n, learns_from=["unlabelled"], **options).plan for n in (1, 3))
    assert len(three.split.lists["labelled"]) > len(one.split.lists["labelled"])
    for name in ("test", "unlabelled", "val"):
        assert one.split.lists[name] == three.split.lists[name]
    assert one.sha256 != three.sha256


def test_empty_and_inverted_masks_are_named_each_time(data, pictures, tmp_path, caplog):
    data().prepare()
    assert "mask" not in caplog.text
    empty, inverted = tmp_path / "empty", tmp_path / "inverted"
    shutil.copytree(pictures, empty)
    Image.new("L", (36, 36)).save(empty / "masks/spot/041.png")
    shutil.copytree(pictures, inverted)
    for mask in (inverted / "masks/spot").iterdir():
        ImageOps.invert(Image.open(mask)).save(mask)
    for _ in ("decoded", "from the cache"):
        caplog.clear()
        data(root=str(empty)).prepare()
        assert (
            "1 of 8 masks to judge by have no defective pixel at this size, such as masks/spot/041.png" in caplog.text
        )
        assert "inverted?" not in caplog.text
        caplog.clear()
        data(root=str(inverted)).prepare()
        assert "8 of 8 masks to judge by mark more than 60% of the image, such as masks/spot/040.png: inverted?" in (
            caplog.text
        )
    caplog.clear()
    shutil.copy(inverted / "masks/spot/042.png", empty / "masks/spot/042.png")
    data(root=str(empty)).prepare()
    assert (
        "1 of 8 masks to judge by mark more than 90% of the image, such as masks/spot/042.png: inverted?" in caplog.text
    )
