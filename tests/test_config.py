import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anomaly_lab.config import _NOT_HASHED, check, check_values, compose, conf_dir, hash_basis, hash_of, locate
from anomaly_lab.data.records import DefectDataset
from anomaly_lab.errors import ConfigError

ROOT = ["dataset.root=/somewhere"]
DATASETS = sorted(path for path in conf_dir().glob("dataset/*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", sorted(path.stem for path in conf_dir().glob("model/[!_]*.yaml")))
def test_every_dataset_composes_with_every_model(path, model):
    extra = ["dataset.category=carpet"] if path.stem == "mvtec" else []
    config = compose("train", [f"dataset={path.stem}", f"model={model}", *extra])
    assert config["dataset"]["name"] == path.stem
    assert config["dataset"]["protocol"] == config["model"]["protocol"]
    assert config["trainer"]["max_epochs"] == config["model"]["max_epochs"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=dpea"], ["model=dpea", "'dpae'"]),
        (["dataset=mtt"], ["dataset=mtt", "'mt'"]),
        (["model.latnt_dim=3"], ["'model.latnt_dim'", "'model.latent_dim'"]),
        (["sed=3"], ["'sed'", "'seed'"]),
        (["recipe=dpae_litrl"], ["recipe=dpae_litrl", "'dpae_literal'"]),
        (["dataset=mvtec"], ["dataset.category", "no value"]),
        (["model.latent_dim=[1"], ["model.latent_dim=[1", "key=value"]),
        (["dataset.root"], ["dataset.root", "key=value"]),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(overrides, words):
    with pytest.raises(ConfigError) as error:
        check("train", overrides)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_sweep_with_one_unknown_name_is_refused_as_a_whole():
    with pytest.raises(ConfigError, match="'dpae'"):
        check("train", ["-m", "model=dpae,dpaee", "seed=0,1"])
    assert check("train", ["-m", "model=dpae", "model.latent_dim=16,32"])["model"]["latent_dim"] == 16


@pytest.mark.parametrize(
    "override",
    [
        *("seed=abc", "seed=-1", "seed=1.5", "trainer.max_epochs=null", "trainer.max_epochs=-1", "trainer.devices=0"),
        *("dataset.batch_size=1", "val_quantile=95", "val_quantile=abc", "checkpoint=lst", "predictions=galery"),
        *("dataset.augment=maybe", "allow=foo", "force=perhaps", "dataset.image_size=0"),
        "+trainer.gradient_clip_val=1.0",
        "trainer.devices=[0,1]",
    ],
)
def test_a_value_that_cannot_work_is_named_before_anything_starts(override):
    with pytest.raises(ConfigError, match=override.lstrip("+").partition("=")[0].replace(".", r"\.")):
        check_values(compose("train", [override]))


def test_the_defaults_can_work():
    check_values(compose("train", []))


def test_one_and_one_point_nought_are_the_same_option():
    a, b = (hash_of(hash_basis(compose("train", [f"model.latent_weight={text}"]), "d")) for text in ("1", "1.0"))
    assert a == b


def test_synthesised_defects_have_a_version_in_the_hash_and_nothing_else_has():
    asked, plain = (compose("train", ["model=unet", *more]) for more in (["dataset.labels=synthetic"], []))
    assert "synthesis" in hash_basis(asked, "a")
    assert "synthesis" not in hash_basis(plain, "a")


def test_the_hash_ignores_where_and_how_but_not_what():
    def hash_with(*overrides):
        return hash_of(hash_basis(compose("train", list(overrides)), "split"))

    plain = hash_with()
    same = [
        "dataset.split=random",
        "dataset.split_seed=3",
        "dataset.root=/elsewhere",
        "dataset.num_workers=3",
        "runs_dir=x",
        "trainer.accelerator=cpu",
        "tags=[a]",
    ]
    assert {hash_with(override) for override in same} == {plain}
    other = ["model.latent_dim=5", "model.optimizer.lr=0.5", "trainer.max_epochs=3", "dataset.flip=false"]
    other += ["trainer.precision=bf16-mixed", "model.version=9", "dataset.image_size=64", "checkpoint=best"]
    assert len({plain, *(hash_with(override) for override in other)}) == len(other) + 1
    assert hash_of(hash_basis(compose("train", []), "another split")) != plain


@example({"stage1": 0})
@given(st.dictionaries(st.text(min_size=1), st.one_of(st.integers(), st.text(), st.none()), max_size=5))
def test_a_new_option_that_is_null_changes_no_hash(more):
    config = compose_once()
    extended = {**config, "model": {**more, **config["model"]}}
    # hypothesis draws names from the package itself too, of what is never hashed as well
    known = config["model"].keys() | _NOT_HASHED["model"]
    changed = any(value is not None for key, value in more.items() if key not in known)
    assert (hash_of(hash_basis(extended, "s")) == hash_of(hash_basis(config, "s"))) != changed


def compose_once(kept={}):  # noqa: B006  # composing takes 50 ms
    if not kept:
        kept.update(compose("train", ROOT))
    return kept


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "anomaly_lab.provenance.subprocess.Popen",  # reached through a module of ours
        "anomaly_lab.runs.Path",
        "anomaly_lab.nowhere.Thing",
        "anomaly_lab_evil.Thing",
        "anomaly_lab.runs.Run",  # ours, but no dataset
        "builtins.eval",
        "",
    ],
)
def test_a_target_that_is_no_dataset_of_ours_is_refused(target):
    with pytest.raises(ConfigError):
        locate(target, DefectDataset)


def test_a_package_of_the_users_is_allowed_by_the_users_word(tmp_path, monkeypatch):
    (tmp_path / "my_lines.py").write_text(
        "from anomaly_lab.data.records import DefectDataset\n"
        "class Belt(DefectDataset):\n    def scan(self):\n        return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="my_lines"):
        locate("my_lines.Belt", DefectDataset)
    assert "my_lines" not in sys.modules  # refused before it could run anything
    assert locate("my_lines.Belt", DefectDataset, ["my_lines"]).__name__ == "Belt"


def test_a_whole_node_can_be_replaced_and_an_error_says_how():
    with pytest.raises(ConfigError, match=r"'model\.optimizer\.momentum'.*'~model\.optimizer' '\+model\.optimizer="):
        compose("train", ["model.optimizer={_target_: torch.optim.SGD, momentum: 0.9}"])
    config = compose("train", ["~model.optimizer", "+model.optimizer={_target_: torch.optim.SGD, momentum: 0.9}"])
    assert config["model"]["optimizer"] == {"_target_": "torch.optim.SGD", "momentum": 0.9}


def test_a_name_in_capitals_is_answered_with_the_known_one():
    with pytest.raises(ConfigError, match=r"There is no dataset=MT\. Did you mean 'mt'\?"):
        compose("train", ["dataset=MT"])


@pytest.mark.parametrize("before", [[], ["model=unet"]])
def test_a_typo_below_a_chosen_model_is_answered_with_the_nearest_option(before):
    with pytest.raises(ConfigError, match=r"no option 'model\.optimizr'.*Did you mean 'model\.optimizer"):
        compose("train", [*before, "model.optimizr=3"])


@pytest.mark.parametrize(
    ("text", "meant"), [("max_epochs=5", "trainer.max_epochs"), ("root=x", "dataset.root"), ("datset=mt", "'dataset'")]
)
def test_an_option_without_its_group_is_answered_with_the_whole_name(text, meant):
    with pytest.raises(ConfigError, match=re.escape(f"Did you mean {meant}?")):
        compose("train", [text])
