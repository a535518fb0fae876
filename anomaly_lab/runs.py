"""A run directory: where its files are, whether it is finished, and who works on it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from anomaly_lab.config import Config, hash_basis, hash_of
from anomaly_lab.data.plan import DataPlan
from anomaly_lab.data.splits import Split
from anomaly_lab.errors import ConfigError, RunError
from anomaly_lab.files import read_json, read_yaml, write_json, write_text
from anomaly_lab.locks import hold, is_held
from anomaly_lab.provenance import git_sha, versions
from anomaly_lab.run_content import wrong_in_metrics, wrong_in_threshold

Status = Literal["new", "running", "interrupted", "failed", "finished"]

_HALF_WRITTEN = (".*.*-*", ".scores.csv", "checkpoints/*.tmp")  # before they get their names

_ANEW = "Put back what was there, or give its `train` command again with force=true."


@dataclass(frozen=True)
class Run:
    """One training at a stable path: `<runs_dir>/<dataset>[-<category>]/<model>/<hash8>-s<seed>/`."""

    path: Path

    @classmethod
    def of(cls, config: Config, plan: DataPlan) -> Run:
        """The run that a resolved configuration and its data belong to, whether it exists or not."""
        dataset = config["dataset"]
        where = "-".join(filter(None, (dataset["name"], dataset.get("category"))))
        name = f"{hash_of(hash_basis(config, plan.sha256))[:8]}-s{config['seed']}"
        return cls(Path(config["runs_dir"]) / where / config["model"]["name"] / name)

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def split_file(self) -> Path:
        """What was trained and tested on."""
        return self.path / "split.json"

    @property
    def metrics_file(self) -> Path:
        """Status, metrics, and where they come from."""
        return self.path / "metrics.json"

    @property
    def scores_file(self) -> Path:
        """One row per test image."""
        return self.path / "scores.csv"

    @property
    def threshold_file(self) -> Path:
        """The threshold chosen for use, if one was (`anomaly-lab threshold`)."""
        return self.path / "threshold.json"

    @property
    def leakage_file(self) -> Path:
        """Near-duplicates across training and test."""
        return self.path / "leakage.json"

    @property
    def error_file(self) -> Path:
        """The traceback of a failed run."""
        return self.path / "error.txt"

    @property
    def checkpoints(self) -> Path:
        """`last.ckpt`, and `best.ckpt` where it was asked for."""
        return self.path / "checkpoints"

    @property
    def splits(self) -> Path:
        """What is known of each split of the dataset (floors, leakage), shared by its runs."""
        return self.path.parent.parent / "splits"

    def read(self) -> dict[str, Any]:
        """The content of metrics.json, empty if there is none.

        Raises:
            RunError: if the file is not what a run writes.
        """
        try:
            content = read_json(self.metrics_file)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.metrics_file} cannot be read ({error}). Delete it, or run with force=true."
            ) from None
        if wrong := wrong_in_metrics(content):
            raise RunError(
                f"{self.metrics_file} is not the metrics of a run: {wrong}. Delete it, or run with force=true."
            )
        return {"reasons": {}, "seconds": {}, **content}

    def config(self) -> Config:
        """The stored configuration.

        Raises:
            RunError: if the folder is no run, or its configuration is damaged.
        """
        try:
            content = read_yaml(self.config_file)
        except FileNotFoundError:
            raise RunError(f"{self.path} is no run directory: it has no config.yaml.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.config_file} cannot be read: {error}. {_ANEW}") from None
        if not isinstance(content, dict) or not {"model", "dataset", "trainer", "seed"} <= content.keys():
            raise RunError(f"{self.config_file} is not the configuration of a run. {_ANEW}")
        return content

    def split(self) -> Split:
        """The stored split."""
        try:
            return Split.from_json(read_json(self.split_file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.split_file} cannot be read: {str(error).rstrip('.')}. {_ANEW}") from None

    def check_finished(self) -> None:
        """See that its results are there.

        Raises:
            RunError: if the folder is no run, or the run is not finished.
        """
        self.config()
        if (status := self.status()) != "finished":
            raise RunError(f"{self.path} is {status}, not finished: run its `train` command again first.")

    @contextlib.contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Around what is made of the run's configuration: an option that lacks or cannot work is one of this file.

        Raises:
            ConfigError: with the file's name.
            RunError: where an option lacks, or is of another kind.
        """
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{error} (in {self.config_file}, unless it was given)") from error
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{self.config_file} is not the configuration of a run: {error} is missing or wrong."
            ) from error

    def check_trained(self) -> None:
        """See that there is a trained model to score with.

        Raises:
            RunError: if the folder is no run, or the run is not finished, or was imported.
        """
        if self.read().get("imported"):
            raise RunError(f"{self.path} was imported: it has scores, and no model to score with.")
        self.check_finished()

    def threshold(self, score: str | None = None) -> float | None:
        """The score above which an image is called defective: the one chosen for use, or that of the metrics.

        With the name of a `score`, one chosen for another score does not count; a file that names none counts.
        """
        chosen = self.chosen_threshold()
        if chosen is None or score not in (None, chosen.get("score", score)):
            chosen = self.read().get("metrics", {})
        return chosen.get("threshold")

    def chosen_threshold(self) -> dict[str, Any] | None:
        """The content of threshold.json, None if there is none.

        Raises:
            RunError: if it is damaged.
        """
        try:
            content = read_json(self.threshold_file)
            if wrong := wrong_in_threshold(content):
                raise ValueError(wrong)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.threshold_file} cannot be read: {error}. Delete it, or choose again.") from None
        return content  # type: ignore[no-any-return]  # a mapping

    def status(self) -> Status:
        """What became of the run; `interrupted` if it says running and nobody works on it."""
        status: Status = self.read().get("status", "new")
        return "interrupted" if status == "running" and not self.is_locked() else status

    def is_locked(self) -> bool:
        """Whether a living process works on it."""
        return is_held(self.path)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run; the lock is the kernel's, so it dies with its process.

        Raises:
            RunBusyError: if another process holds it.
            RunError: if the folder cannot be written.
        """
        return hold(self.path)

    def check(self, config: Config, plan: DataPlan) -> None:
        """Compare what is stored with what is asked.

        Raises:
            RunError: if the folder holds another configuration, or other data, under the same hash.
        """
        data = self.read().get("data_sha256")
        if data is None or not self.config_file.exists():
            return
        stored, asked = hash_basis(self.config(), str(data)), hash_basis(config, plan.sha256)
        if stored != asked:
            raise RunError(
                f"{self.path} holds another configuration under the same hash (it differs in "
                f"{', '.join(_differences(stored, asked))}). Move it away, or run with force=true."
            )

    def start(self, config: Config, plan: DataPlan) -> None:
        """Write what is going to be run, and mark it running; what a killed process left half-written goes."""
        for pattern in _HALF_WRITTEN:
            for path in self.path.glob(pattern):
                path.unlink()
        write_json(self.split_file, plan.split.to_json())
        write_text(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self._write("running", config, plan, {})

    def finish(self, config: Config, plan: DataPlan, results: Mapping[str, Any]) -> None:
        """Write the metrics and mark the run finished; the last thing that happens to it."""
        self.error_file.unlink(missing_ok=True)
        self._write("finished", config, plan, results)

    def fail(self, config: Config, plan: DataPlan, cause: BaseException, traceback: str) -> None:
        """Keep the traceback and mark the run failed."""
        write_text(self.error_file, traceback)
        self._write("failed", config, plan, {"cause": str(cause) or type(cause).__name__})

    def clear(self) -> None:
        """Empty the folder, what says that the run is finished first."""
        self.metrics_file.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def delete(self) -> None:
        """Remove a run that is held; whoever waits for it, or comes in now, starts in an empty folder."""
        self.clear()
        (self.path / ".lock").unlink()  # last, so that nothing of another's is deleted
        with contextlib.suppress(OSError):  # another one is in it already
            self.path.rmdir()

    def _write(self, status: str, config: Config, plan: DataPlan, results: Mapping[str, Any]) -> None:
        content = {
            "status": status,
            "metrics": {},
            "reasons": {},
            "seconds": {},
            "config_hash": hash_of(hash_basis(config, plan.sha256)),
            "split_sha256": plan.split.sha256,
            "data_sha256": plan.sha256,
            "seed": config["seed"],
            "git_sha": git_sha(),
            "versions": versions(),
            "tags": list(config["tags"]),
            **results,
        }
        write_json(self.metrics_file, content)


def flat_options(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with dotted names: `model.latent_dim` of {"model": {"latent_dim": 32}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flat_options(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted(a.keys() | b.keys())
        return [d for key in keys for d in _differences(a.get(key), b.get(key), f"{prefix}.{key}".strip("."))]
    return [] if a == b else [prefix]
