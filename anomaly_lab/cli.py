"""The command line: `anomaly-lab <verb> [overrides]`. What is heavy is imported by the verb that needs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from anomaly_lab.console import log_to_console
from anomaly_lab.errors import ConfigError, LabError, nearest
from anomaly_lab.hardware import share_cores, under_torchrun

VERBS = {
    "train": "train a method on a dataset, or sweep over options with -m",
    "evaluate": "score a finished run again",
    "predict": "score new pictures with a finished run",
    "threshold": "choose the threshold that a run is used with",
    "export": "a finished run as one file for other programs",
    "report": "one HTML page of a folder of runs",
    "reproduce": "a table or figure of a paper beside what is found here",
    "compare": "what differs between two runs, and what that did to their scores",
    "dashboard": "what a project at Weights & Biases shows, as code",
    "import": "make a run of another tool's scores",
    "data": "get a public dataset, or unpack an archive of it",
    "manifest": "write down what a folder holds, as a CSV file to train on",
    "runs": "list the runs of a folder and the sweeps at work, clean what failed",
    "doctor": "say what this machine can do, and which datasets it finds",
}

# verbs whose file has another name: runs.py is the run directory, dashboard.py a run's, import a keyword, data a folder
_MODULES = {"runs": "list_runs", "import": "import_scores", "dashboard": "workspace", "data": "get_data"}

_EXAMPLES = {
    "train": """\
Start here (trains on a generated dataset, no download):
  anomaly-lab train
Your own pictures (a folder of normal images is enough):
  anomaly-lab train dataset=folder dataset.root=DIR
A sweep, and the options it can vary:
  anomaly-lab train -m model.latent_dim=16,32 seed=0,1
  anomaly-lab train --cfg job
""",
    "evaluate": """\
Scores, metrics and figures of a trained run, made anew with the images where they were, or elsewhere:
  anomaly-lab evaluate run=RUN_DIR
  anomaly-lab evaluate run=RUN_DIR dataset.root=DIR
The best epoch of a run that was trained with checkpoint=best:
  anomaly-lab evaluate run=RUN_DIR checkpoint=best
Thresholds and AUROC of another of the method's scores, without training again:
  anomaly-lab evaluate run=RUN_DIR model.score=RLZ
""",
    "predict": """\
Score, verdict and a picture of where, for new pictures; the same command again goes on where it stopped:
  anomaly-lab predict run=RUN_DIR input=FOLDER output=FOLDER
  anomaly-lab predict run=RUN_DIR input='FOLDER/*.png' output=FOLDER format=jsonl overlays=all
  anomaly-lab predict run=RUN_DIR input=LIST.txt output=FOLDER threshold=0.3
What cannot be read stands in errors.csv, and the exit status is 1.
""",
    "threshold": """\
The score above which a picture is called defective, chosen on held-out images and kept with the run; `predict` uses it:
  anomaly-lab threshold RUN_DIR false_alarms=0.01
  anomaly-lab threshold RUN_DIR miss_cost=100 false_alarm_cost=1 defect_rate=0.02
Of another of the method's scores, which the run is then used with:
  anomaly-lab threshold RUN_DIR score=RLX_peak false_alarms=0.01
What is in use, and back to the run's own:
  anomaly-lab threshold RUN_DIR
  anomaly-lab threshold RUN_DIR reset=true
""",
    "export": """\
The network, its scores and threshold as one file, whose scores are compared with ours before it is handed on:
  anomaly-lab export RUN_DIR format=onnx
  anomaly-lab export RUN_DIR format=torch output=FILE.pt2
""",
    "report": """\
A page that opens in a browser without anything else: leaderboard, curves, scores with a threshold to drag, pictures:
  anomaly-lab report runs_dir=DIR output=FILE.html
  anomaly-lab report runs_dir=DIR output=FILE.html run=RUN_DIR images=folder
The pictures are those of one run, the latest unless run= names another; images=folder puts them beside it, as large as
the network sees them.
Options: dataset=NAME  model=NAME  tag=WORD (which runs)  title=TEXT
""",
    "reproduce": """\
A table of a paper: run what it lacks, and print it beside the paper's numbers, on another dataset and at sizes that two
cores finish if wanted; the same command again runs only what is missing or failed:
  anomaly-lab reproduce dpae/table4
  anomaly-lab reproduce dpae/fig6 dataset=mt seeds=3 settings=small
What it would run, what of it is there, and how long the rest takes:
  anomaly-lab reproduce dpae/table4 --dry-run
Names: dpae/table2..6, dpae/fig4..7, ae_unet/table1..4, tableA1, tableA2, fig4..6, or a YAML file of your own. Options:
  seeds=N  dataset=NAME  model=NAME  settings=small|tiny|FILE.yaml  output=DIR  hydra/launcher=joblib  those of train
""",
    "compare": """\
Options, versions and split that differ, the scores of the test images that both have, and which changed sides:
  anomaly-lab compare RUN_A RUN_B
  anomaly-lab compare RUN_A RUN_B output=FILE.csv
""",
    "dashboard": """\
A workspace and a report over the runs that were sent with logger=wandb (needs WANDB_API_KEY):
  anomaly-lab dashboard project=anomaly_lab entity=NAME
""",
    "import": """\
Scores of another tool, to stand in the same tables: a CSV with the columns path and score for the images of a split
(its test images are listed in any run's scores.csv), and a folder with a map for each if there are some:
  anomaly-lab import scores.csv name=patchcore dataset=mt dataset.split_seed=0 seed=0
  anomaly-lab import scores.csv name=patchcore dataset=mt maps=DIR pixel_threshold=0.5
Rows for val's normal images give the threshold to deploy. `reproduce` shows it beside the methods of the same split.
""",
    "data": """\
Into its folder below ANOMALY_LAB_DATA, or into root=DIR; a download that broke off goes on:
  anomaly-lab data get mt
  anomaly-lab data get crackforest root=DIR
An archive that you have (mvtec, one category or all; apsd, rsd, mt, crackforest):
  anomaly-lab data prepare mvtec carpet.tar.xz
A stand-in for the DPAE paper's RSD, of CrackForest's photographs (crackforest=DIR, or below ANOMALY_LAB_DATA):
  anomaly-lab data make rsd
Files are compared with the known ones; checked=false takes others.
""",
    "manifest": """\
A CSV file with path, label, mask, group and split of each picture, for layouts that people have (recognised, or by
name: visa, btad, mvtec, mvtec_ad_2, kolektor2, labelme), or from a COCO file:
  anomaly-lab manifest DIR
  anomaly-lab manifest DIR layout=visa category=candle output=candle.csv
  anomaly-lab manifest DIR annotations=DIR/annotations.json "group_regex='part(\\d+)'"
  anomaly-lab train dataset=manifest dataset.manifest=FILE.csv
""",
    "runs": """\
All runs below ./runs or another folder, or some of them, and how far the sweeps are that other terminals work on:
  anomaly-lab runs
  anomaly-lab runs runs_dir=DIR model=dpae dataset=mt status=failed
Delete the runs that failed (or clean=interrupted: those that were cut off and could go on):
  anomaly-lab runs clean=failed
""",
    "doctor": """\
The hardware, the versions, the datasets found and how to get the others:
  anomaly-lab doctor
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0 done, 1 a job failed, 2 a mistake in the command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _answer(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            return 141
        raise


def _answer(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<10} {what}" for name, what in VERBS.items())
        print(f"anomaly-lab VERB [key=value ...]\n\n{verbs}\n\n{_EXAMPLES['train']}")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"anomaly-lab {version('anomaly_lab')}")
        return 0
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}. {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(rest):
        what = {
            "reproduce": " NAME",
            "compare": " RUN_A RUN_B",
            "threshold": " RUN_DIR",
            "manifest": " DIR",
            "data": " get|prepare|make NAME [ARCHIVE]",
            "import": " FILE.csv",
        }.get(verb, "")
        print(f"anomaly-lab {verb}{what} [key=value ...]: {VERBS[verb]}\n\n{_EXAMPLES[verb]}")
        return 0
    share_cores()
    log_to_console()
    try:
        if not under_torchrun():
            return _run(verb, rest)
        if verb not in ("train", "reproduce") or any(text.startswith("hydra/launcher=") for text in rest):
            raise ConfigError(
                f"torchrun starts the processes of a training: {verb} works without it, and a launcher of Hydra's too."
            )
        from anomaly_lab.launch import lead, leave

        with lead() as leading:
            status = _run(verb, rest) if leading else 0
        leave(status)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. The same command (without force=true) goes on where it stopped.", file=sys.stderr)
        return 130


def _run(verb: str, arguments: list[str]) -> int:
    from anomaly_lab.arguments import with_plain_paths

    module = importlib.import_module(f"anomaly_lab.{_MODULES.get(verb, verb)}")
    status: int = module.main(with_plain_paths(arguments))
    return status
