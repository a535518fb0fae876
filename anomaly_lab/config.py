"""The way from `conf/` and overrides to a checked, resolved configuration, and its hash."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anomaly_lab.arguments import option_of, runs_hydra, sweep_values
from anomaly_lab.errors import ConfigError, nearest, require

Config = dict[str, Any]
T = TypeVar("T")

# Whose classes a config may name. A stranger's config.yaml is data: it must not choose what code runs.
ALLOWED = ("anomaly_lab", "torch.optim")

# What a method's config asks of the dataset and the trainer, where it stands too; no arguments of its class.
ASKED = ("protocol", "learns_from", "input_size", "batch_size", "steps_per_epoch", "rotate", "translate", "max_epochs")

# What never changes a number: where things lie, what shows or stores them, and on which device they run.
# The split's options are left out because the split itself, as a SHA of its lists, is in.
_NOT_HASHED = {
    "model": {*ASKED, "autoencoder", "stage1"},  # the first stage stands in by its own hash
    "dataset": {
        *("root", "manifest", "num_workers", "protocol", "split", "split_seed", "train_count", "val_count"),
        *("test_normal_count", "val_fraction", "val_fraction_of", "test_fraction", "tuning"),
        *("labelled_per_type", "unlabelled_per_type", "label_reserve"),
    },
    "trainer": {"accelerator", "devices", "strategy", "estimate"},
}

# By `dataset.labels`: raised when data/synthesis.py draws other defects, or when real ones come at another rate beside
# them, so that no older run stands in for a new one
_SYNTHESIS = {"synthetic": 5, "both": 6}

_TRAINER = {"max_epochs", "precision", "accelerator", "devices", "strategy", "estimate"}  # nothing else is passed on


def shipped(folder: str) -> Path:
    """A folder that travels with the package: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def conf_dir() -> Path:
    """The folder of the shipped configuration."""
    return shipped("conf")


def has_choice(group: str, name: str) -> bool:
    """Whether `GROUP=NAME` is known, such as `recipe=dpae_literal`."""
    return (conf_dir() / group / f"{name}.yaml").exists()


def compose(verb: str, overrides: Sequence[str]) -> Config:
    """The resolved configuration of `conf/<verb>.yaml` under the overrides, as plain containers.

    Raises:
        ConfigError: for an unknown option or choice (with the nearest known one) or a missing value.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    with _no_other_hydra(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            for override in parsed:  # the one group that may be missing, as long as nobody asks for it
                if override.key_or_group != "recipe" or override.is_delete():
                    continue
                if override.value() is None:
                    raise ConfigError("recipe=null is not understood: ~recipe leaves the recipe out.")
                if not has_choice("recipe", str(override.value())):
                    known = [path.stem for path in (conf_dir() / "recipe").glob("[!_]*.yaml")]
                    raise ConfigError(f"There is no recipe={override.value()}. {nearest(override.value(), known)}")
            return resolve(hydra_compose(verb, list(overrides)))
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file or "").rpartition("/")
            options = [str(option) for option in error.options or [] if not str(option).startswith("_")]
            raise ConfigError(f"There is no {group}={name}. {nearest(name, options)}") from None
        except ConfigCompositionException as error:
            cause = error.__cause__
            if not isinstance(cause, ConfigAttributeError | ConfigKeyError):
                raise ConfigError(str(cause or error).splitlines()[0]) from None
            wrong = str(cause.full_key)
            # a whole node may have been given, and only one key of it is wrong
            for key in (
                str(o.key_or_group)
                for o in parsed
                if wrong.startswith(f"{o.key_or_group}.") and isinstance(o.value(), dict)
            ):
                raise ConfigError(
                    f"There is no option {wrong!r} to be set by {key}={{...}}; to replace all of {key}, take it out "
                    f"first: '~{key}' '+{key}={{...}}'."
                ) from None
            chosen = [
                text
                for text, override in zip(overrides, parsed, strict=True)
                if (conf_dir() / override.key_or_group).is_dir()
            ]
            tree = OmegaConf.to_container(hydra_compose(verb, chosen), resolve=False)
            dotted = _dotted(tree)
            known = dotted if "." in wrong else list(map(str, tree or ()))
            leaves = [name for name in dotted if name.rpartition(".")[2] == wrong]
            leaves = [name for name in leaves if not name.startswith("model.")] or leaves  # both have max_epochs
            if leaves:
                raise ConfigError(f"There is no option {wrong!r}. Did you mean {' or '.join(leaves[:3])}?") from None
            raise ConfigError(f"There is no option {wrong!r}. {nearest(wrong, known, listed=False)}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(str(error).splitlines()[0]) from None


@contextmanager
def _no_other_hydra() -> Iterator[None]:
    """Put Hydra's global state aside: within a job of a multirun, the first of two stages is composed."""
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def check(verb: str, arguments: Sequence[str]) -> Config:
    """Compose once for each value of a sweep, so that an unknown name stops it before the first job.

    Only the names are looked at: a value that does not work fails its own job later. Returns the
    configuration of the first values.
    """
    ours = [texts for texts in sweep_values(arguments) if not runs_hydra(option_of(texts[0]))]
    firsts = [texts[0] for texts in ours]
    for place, texts in enumerate(ours):
        for text in texts[1:]:
            compose(verb, [*firsts[:place], text, *firsts[place + 1 :]])
    return compose(verb, firsts)


def check_values(config: Config) -> None:
    """Check what would otherwise be noticed after the training, or never.

    Raises:
        ConfigError: naming the option, its value and what it may be.
    """
    whole = (("seed", 0), ("trainer.max_epochs", 0), ("dataset.batch_size", 2), ("dataset.image_size", 1))
    for name, least in whole:
        value = _at(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r} has to be a whole number of at least {least}.")
    require("checkpoint", config["checkpoint"], ("last", "best"))
    require("predictions", config["predictions"], ("gallery", "all", "none"))
    for name in ("dataset.augment", "force", "trainer.estimate"):
        if not isinstance(_at(config, name), bool):
            raise ConfigError(f"{name}={_at(config, name)!r} has to be true or false.")
    for name in ("tags", "allow"):
        if not isinstance(config[name], list):
            raise ConfigError(f"{name}={config[name]!r} has to be a list: {name}=[a,b].")
    quantile = config["val_quantile"]
    if not isinstance(quantile, float) or not 0 < quantile < 1:
        raise ConfigError(f"val_quantile={quantile!r} has to be a number between 0 and 1.")
    if unknown := sorted(config["trainer"].keys() - _TRAINER):
        raise ConfigError(f"trainer.{unknown[0]} does not exist. {nearest(unknown[0], sorted(_TRAINER))}")
    devices = config["trainer"]["devices"]
    if devices != "auto" and (not isinstance(devices, int) or devices < 1):
        raise ConfigError(f"trainer.devices={devices!r} has to be a number of devices, or auto for all GPUs.")
    if config["checkpoint"] == "best" and config["trainer"]["max_epochs"] == 0:
        raise ConfigError("checkpoint=best needs a training: trainer.max_epochs=0 scores the untrained method.")


def resolve(config: Any) -> Config:
    """Resolve interpolations into plain containers; a value left `???` is an error that names it."""
    from omegaconf import OmegaConf

    missing = OmegaConf.missing_keys(config)
    if missing:
        name = sorted(missing)[0]
        raise ConfigError(f"{name} has no value: give {name}=... on the command line.")
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def hash_basis(config: Config, data_sha256: str) -> Config:
    """The part of a resolved configuration that determines the numbers; nulls are left out.

    New options default to null, meaning the old behaviour, so that runs made before them are found.
    """
    basis = {
        "data": data_sha256,
        "val_quantile": config["val_quantile"],
        "checkpoint": config["checkpoint"],
        **{part: {k: v for k, v in config[part].items() if k not in _NOT_HASHED[part]} for part in _NOT_HASHED},
    }
    if (labels := config["dataset"].get("labels")) in _SYNTHESIS:
        basis["synthesis"] = _SYNTHESIS[labels]
    return _canonical(basis)  # type: ignore[no-any-return]


def hash_of(basis: Config) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(json.dumps(basis, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def locate(target: str, kind: type[T], allow: Sequence[str] = ()) -> type[T]:
    """The class a `_target_` names.

    Raises:
        ConfigError: if its package is not allowed, or it is not defined there, or is no `kind`. Packages of
            your own are allowed by `allow=[package]` on the command line, never by a run's config.
    """
    packages = (*ALLOWED, *allow)
    module_name, _, name = str(target).rpartition(".")
    if not any(module_name == package or module_name.startswith(f"{package}.") for package in packages):
        raise ConfigError(f"_target_={target!r} is outside of {', '.join(packages)}; allow=[PACKAGE] allows your own.")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ConfigError(f"_target_={target!r} cannot be imported: {error}") from None
    # a name that a module merely imported, such as `os.system` by way of ours, is refused too
    defined_there = isinstance(found, type) and any(
        found.__module__ == package or found.__module__.startswith(f"{package}.") for package in packages
    )
    if not defined_there or not issubclass(found, kind):  # type: ignore[arg-type]
        raise ConfigError(f"_target_={target!r} is no {kind.__name__}.")
    return found  # type: ignore[return-value]


def as_partial(name: str, node: Any, kind: type[T], allow: Sequence[str] = ()) -> partial[T]:
    """The option `name`, a node with a `_target_`, as a partial of that class.

    Raises:
        ConfigError: if it is none, or names no such class (`locate`).
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(
            f"{name}={node!r} has to name a class and its options: {name}._target_=torch.optim.Adam, for example."
        )
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    return partial(locate(node["_target_"], kind, allow), **arguments)


def _at(config: Config, name: str) -> Any:
    node: Any = config
    for key in name.split("."):
        node = node[key]
    return node


def _dotted(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [name for key, value in tree.items() for name in _dotted(value, f"{prefix}.{key}" if prefix else str(key))]


def _canonical(tree: Any) -> Any:
    """Without nulls, and with whole numbers as floats: 1 and 1.0 are the same option."""
    if isinstance(tree, Mapping):
        return {key: _canonical(value) for key, value in tree.items() if value is not None}
    if isinstance(tree, list | tuple):
        return [_canonical(value) for value in tree]
    return float(tree) if isinstance(tree, int) and not isinstance(tree, bool) else tree
