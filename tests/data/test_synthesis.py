"""Defects synthesised to learn from: marked where they change an image, and of no other painter's code."""

import ast
from pathlib import Path

import numpy as np
import pytest

from anomaly_lab.data import painting, synthesis, synthetic
from anomaly_lab.data.options import SYNTHETIC_KINDS, LoadOptions
from anomaly_lab.data.painting import KINDS as VAL_KINDS
from anomaly_lab.data.synthesis import DEFECTS, KINDS, Synthesis, synthesise
from anomaly_lab.data.synthetic import DEFECTS as TEST_DEFECTS
from anomaly_lab.errors import ConfigError


def surface(seed, shape=(64, 64), grey=True):
    """A rough surface in uneven light."""
    rng = np.random.default_rng(seed)
    light = np.linspace(80, 160, shape[1])[None, :, None]
    pixels = light + rng.normal(0, 6, (*shape, 1 if grey else 3))
    return np.broadcast_to(pixels, (*shape, 3)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (33, 32)])
def test_the_mask_holds_what_was_changed(kind, shape):
    marked = 0
    for seed in range(20):
        image, other = surface(seed, shape), surface(seed + 100, shape)
        before = image.copy()
        damaged, mask = synthesise(image, other, [kind], np.random.default_rng(seed))
        assert (image == before).all()
        assert damaged.dtype == mask.dtype == np.uint8
        assert damaged.shape == (*shape, 3)
        assert mask.shape == shape
        assert set(np.unique(mask)) <= {0, 1}
        assert (damaged == damaged[..., :1]).all(), "grey stays grey"
        change = np.abs(damaged.astype(int) - image).max(2)
        assert change[mask == 0].max(initial=0) <= 9 * synthesis.VISIBLE, "a 3x3 mean is below what is visible"
        if (mask == 1).any():
            assert change[mask == 1].mean() > change[mask == 0].mean()
            marked += 1
        assert (mask == 1).mean() < (0.95 if kind == "light" else 0.6), "even several of a kind leave some as it was"
    assert marked >= 15, "most are visible"


@pytest.mark.parametrize("kind", KINDS)
def test_all_depends_on_the_generator(kind):
    image, other = surface(0, grey=False), surface(1, grey=False)
    first, again, else_ = (synthesise(image, other, [kind], np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], else_[0])


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_flat_images_of_any_size_are_no_difficulty(kind, level):
    for side in (16, 40):
        image = np.full((side, side, 3), level, np.uint8)
        for seed in range(5):
            damaged, mask = synthesise(image, surface(seed, (side, side)), [kind], np.random.default_rng(seed))
            assert damaged.shape == image.shape
            assert (mask == 1).mean() < 0.9


def test_a_share_is_damaged_and_what_is_ignored_stays_so():
    image, other, mask = surface(0), surface(1, (90, 70)), np.zeros((64, 64), np.uint8)
    mask[:20] = 255
    damage, asked = Synthesis(KINDS, 0.25), []
    others = lambda number: asked.append(number) or other  # noqa: E731
    results = [damage(image, mask, others, 7, np.random.default_rng(seed)) for seed in range(400)]
    assert len(asked) == sum(damaged is not image for damaged, _ in results), "no other image is read in vain"
    assert set(asked) == set(range(7))
    assert 60 <= sum(damaged is not image for damaged, _ in results) <= 140
    assert all((marked[:20] == 255).all() and (marked[20:] != 255).all() for _, marked in results)
    assert sum((marked == 1).any() for _, marked in results) > 40


@pytest.mark.parametrize("wrong", [["crak"], [3], [], "crack", 5])
def test_kinds_that_are_none_are_refused_before_anything_is_read(wrong):
    assert tuple(DEFECTS) == SYNTHETIC_KINDS
    with pytest.raises(ConfigError, match=r"dataset\.synthetic_kinds"):
        LoadOptions(synthetic_kinds=wrong)


def test_no_kind_and_no_code_is_shared_with_what_it_is_judged_by():
    assert not set(DEFECTS) & {*VAL_KINDS, *TEST_DEFECTS}
    painters = {Path(module.__file__).stem: module for module in (synthesis, painting, synthetic)}
    for name, module in painters.items():
        tree = ast.parse(Path(module.__file__).read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        words = {
            word
            for node in found
            for text in [getattr(node, "module", ""), *(alias.name for alias in node.names)]
            for word in str(text).split(".")
        }
        assert not words & (painters.keys() - {name}), f"{name} takes code from another painter"
