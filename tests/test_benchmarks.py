import copy
import json
from dataclasses import replace

import pytest
import torch

from anomaly_lab.data.datamodule import DefectDataModule
from anomaly_lab.data.options import SYNTHETIC_KINDS
from anomaly_lab.trainer import quieten
from benchmarks import __main__ as command
from benchmarks import precision, scale, step, synthesis
from benchmarks.loops import Difference, InMemory, Window, train_ours, train_plain
from benchmarks.setting import Moment, cache_at, make_setting

CPU = torch.device("cpu")
WINDOW = Window(warm=1, steps=2)


@pytest.fixture
def options(tiny):
    """Of a training on a folder of pictures, without what only a run needs."""
    return [option for option in tiny if not option.startswith("runs_dir")]


@pytest.fixture
def setting(options, tmp_path):
    quieten()
    with cache_at(tmp_path / "cache"):
        yield make_setting(options, tmp_path, repeats=2, seconds=0.01, epochs=1)


def loader(setting):
    return DefectDataModule(setting.plan, setting.config["seed"]).train_dataloader()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"reduction": "sum", "input_norm": "per_image", "latent_weight": 0.5, "prototype_weight": 0.1},
        {"rec_weight": 0.0, "prototype_rate": 0.01, "prototype_hat_weight": 2.0},
    ],
)
def test_both_loops_come_to_the_same_losses_and_weights(setting, overrides):
    setting.config["model"] |= overrides
    start, feed = setting.model(), loader(setting)
    ours = train_ours(setting.config, start, feed, WINDOW, setting.folder)
    plain = train_plain(setting.config, start, feed, WINDOW, CPU)
    assert len(ours.losses) == len(plain.losses) == 3
    assert ours.losses == pytest.approx(plain.losses, rel=1e-6)
    assert len(set(ours.losses)) == 3
    for name, value in start.named_parameters():
        torch.testing.assert_close(ours.parameters[name], plain.parameters[name], rtol=1e-5, atol=1e-7)
        if overrides.get("rec_weight") != 0:
            assert not torch.equal(ours.parameters[name], value)


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [("model", "prototype_rate", 0.4), ("model", "latent_weight", 0.1), ("optimizer", "lr", 0.0009)],
)
def test_loops_that_do_other_work_are_told_apart(setting, section, option, value):
    start, feed = setting.model(), loader(setting)
    ours = train_ours(setting.config, start, feed, WINDOW, setting.folder)
    other = copy.deepcopy(setting.config)
    node = other["model"] if section == "model" else other["model"]["optimizer"]
    assert node[option] != value
    node[option] = value
    difference = Difference.between(start, ours, train_plain(other, start, feed, WINDOW, CPU))
    assert not difference.within(1e-3)


def test_unequal_work_is_an_error_not_a_ratio(setting, monkeypatch):
    def slower_learner(config, *rest):
        config = copy.deepcopy(config)
        config["model"]["optimizer"]["lr"] /= 2
        return train_plain(config, *rest)

    monkeypatch.setattr(step, "train_plain", slower_learner)
    with pytest.raises(step.UnequalError, match="disagree after 3 steps"):
        step.measure(setting)


def test_the_window_is_what_is_timed(setting, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("benchmarks.loops.now", lambda: Moment(next(ticks), 0.0))
    batch = next(iter(loader(setting)))
    window = Window(warm=2, steps=5)
    for training in (
        train_ours(setting.config, setting.model(), InMemory(batch, 9), window, setting.folder),
        train_plain(setting.config, setting.model(), InMemory(batch, 9), window, CPU),
    ):
        assert training.took.wall == 1  # one reading at the start, the next at the end
        assert len(training.losses) == 7


@pytest.mark.slow
def test_the_command_prints_all_parts_and_writes_them(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    output = tmp_path / "bench.json"
    assert command.main([*options, "--repeats", "2", "--seconds", "0.01", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    for text in ("A training step", "in memory", "from the loader", "not measured", "The image cache", "prepare"):
        assert text in shown
    results = json.loads(output.read_text())
    assert results["machine"]["threads"].startswith(str(torch.get_num_threads()))
    for feed in results["step"]["feeds"].values():
        ours, plain = feed["images_per_second"]["ours"], feed["images_per_second"]["plain"]
        assert min(ours + plain) > 0
        assert feed["ratios"] == pytest.approx([ours[0] / plain[0], ours[1] / plain[1]])
        assert feed["ratio"] == pytest.approx(sum(feed["ratios"]) / 2)
        assert feed["passed"] == (feed["ratio"] >= 0.97)
        assert ("PASS" if feed["passed"] else "BELOW") in shown
    fixed = results["step"]["fixed"]
    by_hand = 1000 * 4 / results["step"]["feeds"]["in memory"]["median"]["plain"]  # a batch of 4
    assert fixed["more"] == pytest.approx(fixed["ours"] - fixed["plain"])  # of two repeats, median and mean are one
    assert fixed["share"] == pytest.approx(fixed["more"] / by_hand)
    assert results["cache"]["training loader"]["images"] == 24  # 40, less a quarter tested, less a fifth held out
    assert results["cache"]["prepare"]["first_seconds"] > min(results["cache"]["prepare"]["cached_seconds"])


def test_precisions_are_compared_where_bf16_is_fast(setting, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    result = precision.measure(replace(setting, repeats=1))
    assert set(result["image_auroc"]) == set(result["median"]) == set(precision.VARIANTS)
    assert result["ratio"]["fp32"] == 1
    assert all(0 <= auroc <= 1 for auroc in result["image_auroc"].values())
    for name, (_, memory_format) in precision.VARIANTS.items():
        weight = precision._variant(setting, name)[1].encoder.features[3].weight
        assert weight.is_contiguous(memory_format=memory_format)
        assert not weight.is_contiguous() or memory_format == torch.contiguous_format


def test_synthesis_is_timed_alone_and_beside_the_steps_that_wait_for_it(setting, pictures, monkeypatch, capsys):
    small = ["model.width=2", "model.levels=2", "dataset.image_size=32", "dataset.batch_size=4"]
    monkeypatch.setattr(synthesis, "OPTIONS", ["model=unet", "dataset=folder", f"dataset.root={pictures}", *small])
    monkeypatch.setattr(synthesis, "EACH", 3)
    result = synthesis.measure(setting)
    assert set(result["milliseconds"]) == set(SYNTHETIC_KINDS)
    assert all(len(times) == 2 and min(times) > 0 for times in result["milliseconds"].values())
    assert set(result["images_per_second"]) == set(synthesis.WAYS)
    assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in result["images_per_second"].values())
    rows = synthesis.table(result)
    assert rows.row_count == len(synthesis.WAYS)


@pytest.mark.parametrize("word", ["stpe", "cahce"])
def test_an_unknown_part_is_named_with_the_nearest(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([word])
    assert stopped.value.code == 2
    assert {"stpe": "step", "cahce": "cache"}[word] in capsys.readouterr().err


def test_a_mistyped_option_is_an_error_without_a_traceback(capsys):
    assert command.main(["cache", "dataset.imagesize=3"]) == 2
    assert "dataset.image_size" in capsys.readouterr().err


def test_sizes_are_measured_a_step_at_a_time(tmp_path):
    images, runs = scale.of_images(60, tmp_path / "a"), scale.of_runs(10, tmp_path / "b")
    assert {"scan the folder", "split", "read it"} <= set(images)
    assert set(runs) == {"anomaly-lab runs", "anomaly-lab report"}
    assert (tmp_path / "b/report.html").stat().st_size > 10_000
    assert all(step["seconds"] >= 0 and step["peak"] > 10 for step in (*images.values(), *runs.values()))
