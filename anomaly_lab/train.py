"""`anomaly-lab train`: one run, or a sweep of them; what is finished is left alone, what was cut off goes on.

Nothing here imports torch: a finished run is recognised in a second.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from anomaly_lab.config import Config, check, check_values, conf_dir, resolve, sweep_values
from anomaly_lab.data.plan import make_plan
from anomaly_lab.errors import ConfigError, LabError, nearest
from anomaly_lab.hardware import resolve_precision
from anomaly_lab.runs import Run, RunBusyError, write_json

log = logging.getLogger("anomaly_lab")

_PRINTING = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve"}  # flags that Hydra answers by itself


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    overrides: list[str]
    status: Literal["finished", "skipped", "busy", "failed"]
    run: str | None = None  # its directory, once the configuration is good enough to have one
    cause: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab train ARGUMENTS`; the exit status is 0 if every job is finished."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    if flags & _PRINTING:
        _hand_to_hydra(list(arguments))
        return 0
    if unknown := sorted(flags - {"-m", "--multirun"}):
        raise ConfigError(
            f"There is no flag {unknown[0]}. {nearest(unknown[0], ['-m', '--multirun', *sorted(_PRINTING)])}"
        )
    config = check("train", arguments)
    if not flags:
        return _finish_single(run_job(config, list(arguments)))
    sweep = Path(config["runs_dir"]) / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    # Hydra's parser wants its flag before the overrides
    _hand_to_hydra(["--multirun", *(a for a in arguments if a not in flags), f"hydra.sweep.dir={sweep}"])
    expected = prod(len(values) for values in sweep_values(arguments))
    outcomes = [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(sweep.glob("*/job.json"))]
    if outcomes:
        _show_sweep(outcomes)
    done = sum(outcome.status in ("finished", "skipped") for outcome in outcomes)
    return int(done < max(expected, 1))


def run_job(config: Config, overrides: list[str]) -> Outcome:
    """Train one configuration and say what became of it; only a keyboard interrupt gets out."""
    run = None
    try:
        check_values(config)
        config["trainer"]["precision"] = resolve_precision(config["trainer"]["precision"])
        plan = make_plan(config["dataset"], tuple(config["allow"]))
        run = Run.of(config, plan)
        with run.lock():
            if config["force"]:
                run.clear()
            before = run.read().get("status")
            run.check(config, plan)
            if before == "finished":
                return Outcome(overrides, "skipped", str(run.path))
            if before is not None:
                log.info("Going on with %s", run.path)
            run.start(config, plan)
            try:
                from anomaly_lab.fit import fit  # torch and lightning come with it

                run.finish(config, plan, fit(config, plan, run))
            except Exception as error:
                run.fail(config, plan, error, traceback.format_exc())
                raise
        return Outcome(overrides, "finished", str(run.path))
    except SystemExit:  # what Lightning makes of Ctrl-C and SIGTERM: not failed, the same command goes on
        raise KeyboardInterrupt from None
    except RunBusyError as error:
        return Outcome(overrides, "busy", str(run.path) if run else None, str(error))
    except LabError as error:
        return Outcome(overrides, "failed", str(run.path) if run else None, str(error))
    except Exception as error:  # a fault of ours: its traceback is needed
        log.error("%s", traceback.format_exc())
        return Outcome(overrides, "failed", str(run.path) if run else None, f"{type(error).__name__}: {error}")


def _sweep_job(composed: Any) -> None:
    """One job of a multirun. It never raises: some launchers stop at the first failure, or lose its cause."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = [text for text in hydra.overrides.task if not text.startswith("hydra.")]
    log.info("job %s: %s", hydra.job.num, " ".join(overrides))
    try:
        outcome = run_job(resolve(composed), overrides)
    except LabError as error:
        outcome = Outcome(overrides, "failed", None, str(error))
    if outcome.status == "failed":
        log.error("job %s failed: %s", hydra.job.num, outcome.cause)
    write_json(Path(hydra.sweep.dir) / f"{hydra.job.num:06d}" / "job.json", asdict(outcome))


def _hand_to_hydra(arguments: list[str]) -> None:
    import hydra

    before = sys.argv
    sys.argv = ["anomaly-lab train", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(_sweep_job)()
    finally:
        sys.argv = before


def _finish_single(outcome: Outcome) -> int:
    from rich.console import Console

    from anomaly_lab.reporting.tables import result_table

    if outcome.run is None or outcome.status in ("failed", "busy"):
        log.error("error: %s", outcome.cause)
        return 1
    run = Run(Path(outcome.run))
    content = run.read()
    Console().print(result_table(content["metrics"], content["reasons"], title="/".join(run.path.parts[-3:])))
    if outcome.status == "skipped":
        log.info("This run is finished; nothing was trained. force=true runs it again.")
    for sentence in (*run.split().notes, json.loads(run.leakage_file.read_text(encoding="utf-8"))["sentence"]):
        log.info("%s", sentence)
    log.info("Run directory: %s\nLook at:       %s", run.path, run.path / "figures")
    return 0


def _show_sweep(outcomes: list[Outcome]) -> None:
    from rich.console import Console

    from anomaly_lab.reporting.tables import sweep_table

    rows = []
    for outcome in outcomes:
        content = Run(Path(outcome.run)).read() if outcome.run else {}
        rows.append({**content, **asdict(outcome)})
    Console().print(sweep_table(rows))
