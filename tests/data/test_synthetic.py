from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomaly_lab.data import synthetic
from anomaly_lab.data.splits import SplitOptions, make_split
from anomaly_lab.data.surfaces import SIZE, TEXTURES
from anomaly_lab.data.synthetic import DEFECTS, GRADES, VERSION_FILE, Synthetic, draw, generate, published
from anomaly_lab.errors import DataError

# mean, standard deviation and mask pixels; they may change only together with VERSION
PINNED = {
    ("slip", "brushed"): (125.69, 26.50, 513),
    ("smear", "leather"): (99.42, 20.90, 858),
    ("tear", "ribbed"): (102.90, 20.98, 178),
    ("thread", "woven"): (117.23, 24.86, 350),
    ("warp", "brushed"): (125.99, 26.67, 963),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Synthetic(tmp_path_factory.mktemp("synthetic") / "root")


@pytest.fixture(scope="module")
def images(dataset):
    """The images of training (first 200) and test, their labels and their masks."""
    train, test = ([record for record in dataset.scan() if record.part == part] for part in ("train", "test"))
    read = [np.stack([read_png(dataset.root / record.path) for record in records]) for records in (train[:200], test)]
    blank = np.zeros((SIZE, SIZE), np.uint8)
    masks = np.stack([read_png(dataset.root / record.mask) if record.mask else blank for record in test])
    return *read, np.array([record.label for record in test]), masks > 0


def read_png(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_published_set_has_the_promised_counts(dataset):
    records = dataset.scan()
    assert records == sorted(records, key=lambda record: record.path)
    assert Counter((record.part, record.defect) for record in records) == {
        ("train", "good"): 230,
        ("test", "good"): 50,
        **{("test", defect): 20 for defect in ("slip", "smear", "tear", "thread", "warp")},
    }
    assert all((record.mask is not None) == bool(record.label) for record in records)
    stems = Counter(Path(record.path).stem.split("_", 1)[1] for record in records if record.label)
    assert set(stems) == {f"{texture}_grade{grade}" for texture in TEXTURES for grade in GRADES}
    lists = make_split(records, SplitOptions(val_count=30)).lists
    assert {name: len(lists[name]) for name in ("train_normal", "val", "test")} == {
        "train_normal": 200,
        "val": 60,
        "test": 150,
    }


def test_the_files_are_what_draw_gives_and_nothing_else(dataset):
    for number in (0, 117, 229):
        drawing = draw((0, 0, number), sorted(TEXTURES)[number % 4])
        path = dataset.root / "train" / "good" / f"{number:03d}_{drawing.texture}.png"
        np.testing.assert_array_equal(read_png(path), drawing.image)
    damaged = draw((0, 2, 0), "brushed", "slip", 1)
    np.testing.assert_array_equal(read_png(dataset.root / "test/slip/280_brushed_grade1.png"), damaged.image)
    mask = read_png(dataset.root / "ground_truth/slip/280_brushed_grade1_mask.png")
    np.testing.assert_array_equal(mask > 0, damaged.mask > 0)
    for path in (dataset.root / "ground_truth").glob("*/*grade1_mask.png"):
        assert set(np.unique(read_png(path))) == {0, 255}


@pytest.mark.parametrize("case", sorted(PINNED))
def test_version_1_stays_as_it_is(case):
    defect, texture = case
    drawing = draw((0, 9, 0), texture, defect, 2)
    mean, deviation, marked = PINNED[case]
    assert drawing.image.mean() == pytest.approx(mean, rel=1e-3)
    assert drawing.image.std() == pytest.approx(deviation, rel=1e-3)
    assert drawing.mask.sum() == pytest.approx(marked, abs=2)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_are_exact_and_grades_ascend(defect, texture):
    changes = []
    for grade in (GRADES[0], GRADES[-1]):
        kinds = [(draw((5, seed), texture, defect, grade), draw((5, seed), texture)) for seed in range(1, 3)]
        for damaged, whole in kinds:
            change = np.abs(damaged.image.astype(int) - whole.image).max(axis=-1)
            mask = damaged.mask.astype(bool)
            assert not change[~mask].any(), "changed outside of the mask"
            assert (change[mask] > 0).mean() > 0.7, "marked and unchanged"
            assert 0.003 < mask.mean() < 0.15
            changes.append(change.sum())
    assert sum(changes[2:]) > 1.2 * sum(changes[:2])


def test_further_images_are_new_and_cover_every_pair():
    drawings = list(generate(80, seed=3))
    assert {(d.defect, d.grade, d.texture) for d in drawings} == {
        (defect, grade, texture) for defect in DEFECTS for grade in GRADES for texture in TEXTURES
    }
    again, other = next(generate(1, seed=3)), next(generate(1, seed=4))
    np.testing.assert_array_equal(drawings[0].image, again.image)
    assert (drawings[0].image != other.image).any()
    normal = list(generate(8, seed=3, defective=False))
    assert not any(drawing.mask.any() for drawing in normal)
    assert {drawing.texture for drawing in normal} == set(TEXTURES)
    first = [drawing for _, drawing in islice(published(), 4)]
    new = generate(4, seed=0, defective=False)
    assert all((a.image != b.image).mean() > 0.5 for a, b in zip(first, new, strict=True))


def trivial_scores(train, test):
    """The scores (N,) of methods that do not look for defects; `train` and `test` are uint8 (N, H, W, 3)."""
    from scipy import ndimage
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    grey = test.mean(axis=-1) / 255
    gradient = np.hypot(*np.gradient(grey, axis=(1, 2)))
    high = grey - ndimage.gaussian_filter(grey, (0, 1, 1))

    def thumbnails(stack, size):
        small = [Image.fromarray(image).convert("L").resize((size, size), Image.Resampling.BILINEAR) for image in stack]
        flat = np.stack([np.asarray(image, np.float32).ravel() for image in small])
        return (flat - flat.mean(axis=1, keepdims=True)) / flat.std(axis=1, keepdims=True)

    neighbours = NearestNeighbors(n_neighbors=1).fit(thumbnails(train, 32))
    known, unknown = thumbnails(train, 112), thumbnails(test, 112)
    pca = PCA(200, svd_solver="full").fit(known)
    return {
        "mean": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "greatest gradient": gradient.max(axis=(1, 2)),
        "high frequencies": (high**2).mean(axis=(1, 2)),
        "nearest thumbnail": neighbours.kneighbors(thumbnails(test, 32))[0][:, 0],
        "PCA residual": ((unknown - pca.inverse_transform(pca.transform(unknown))) ** 2).sum(axis=1),
    }


def test_trivial_scorers_do_not_see_the_defects(images):
    train, test, labels, _ = images
    areas = {name: roc_auc_score(labels, score) for name, score in trivial_scores(train, test).items()}
    print({name: round(max(area, 1 - area), 3) for name, area in areas.items()})
    assert all(max(area, 1 - area) < 0.75 for area in areas.values()), areas


@pytest.mark.slow
def test_a_unet_on_fifty_masks_finds_the_defects(images):
    _, test, labels, masks = images
    examples = list(generate(50, seed=7))
    maps = unet_maps(np.stack([d.image for d in examples]), np.stack([d.mask for d in examples]), test)
    image_auroc = roc_auc_score(labels, maps.reshape(len(maps), -1).max(axis=1))
    pixel_auroc = roc_auc_score(masks.ravel(), maps.ravel())
    print(f"UNet on 50 masks: image AUROC {image_auroc:.3f}, pixel AUROC {pixel_auroc:.3f}")
    assert image_auroc >= 0.95


def unet_maps(images, masks, test, steps=800, crop=64):
    """Logits (N, H, W) for `test`, by a UNet of 16, 32 and 64 channels trained on random crops."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)

    def standardised(stack):
        x = torch.as_tensor(stack).permute(0, 3, 1, 2).float()
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)

    def block(inputs, outputs):
        layers = []
        for i in (inputs, outputs):
            layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = block(3, 16), block(16, 32), block(32, 64)
            self.up_second, self.up_first, self.head = block(96, 32), block(48, 16), nn.Conv2d(16, 1, 1)

        def forward(self, x):
            first = self.first(x)
            second = self.second(functional.max_pool2d(first, 2))
            third = self.third(functional.max_pool2d(second, 2))
            second = self.up_second(torch.cat([second, functional.interpolate(third, scale_factor=2)], 1))
            return self.head(self.up_first(torch.cat([first, functional.interpolate(second, scale_factor=2)], 1)))

    net = UNet()
    x, y = standardised(images), torch.as_tensor(masks)[:, None].float()
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        pairs = []
        for index in torch.randint(len(x), (16,)):
            turns, (top, left) = int(torch.randint(4, ())), torch.randint(images.shape[1] - crop + 1, (2,)).tolist()
            both = torch.cat([x[index], y[index]])[:, top : top + crop, left : left + crop].rot90(turns, (1, 2))
            pairs.append(both.flip(2) if torch.rand(()) < 0.5 else both)
        batch = torch.stack(pairs)
        gain, offset = 0.8 + 0.4 * torch.rand(16, 1, 1, 1), 0.2 * torch.randn(16, 3, 1, 1)
        logits, target = net(batch[:, :3] * gain + offset), batch[:, 3:]
        found = logits.sigmoid()
        dice = 1 - (2 * (found * target).sum() + 1) / ((found + target).sum() + 1)
        loss = functional.binary_cross_entropy_with_logits(logits, target) + dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in standardised(test).split(25)])[:, 0].numpy()


def few():
    yield from islice(published(), 2)


def test_it_is_generated_in_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("ANOMALY_LAB_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(synthetic, "published", few)
    root = Synthetic().root
    assert root == tmp_path / "synthetic-v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["synthetic-v1"], "a temporary folder stayed"
    monkeypatch.setattr(synthetic, "published", lambda: pytest.fail("generated twice"))
    assert Synthetic().root == root


def test_the_first_of_two_jobs_wins(tmp_path, monkeypatch):
    root = tmp_path / "root"

    def overtaken():
        yield from few()
        root.mkdir()
        (root / VERSION_FILE).write_text("of the other job")

    monkeypatch.setattr(synthetic, "published", overtaken)
    assert (Synthetic(root).root / VERSION_FILE).read_text() == "of the other job"
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_killed_generation_leaves_no_root(tmp_path, monkeypatch):
    def killed():
        yield from few()
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "published", killed)
    with pytest.raises(KeyboardInterrupt):
        _ = Synthetic(tmp_path / "root").root
    assert not (tmp_path / "root").exists()


def test_another_folder_is_not_filled(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match="holds something else"):
        Synthetic(tmp_path).scan()
    with pytest.raises(DataError, match="cannot be filled"):
        Synthetic(tmp_path / "holiday.jpg" / "below").scan()


def test_a_damaged_or_foreign_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "published", few)
    with pytest.raises(DataError, match="2 images of version 1, not 380"):
        Synthetic(tmp_path / "root").scan()
