"""Whether methods learn anything on the generated dataset, over three seeds; minutes each, so `make test-slow`."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SEEDS = (0, 1, 2)
SMALL = {
    "dpae": ["model.encoder_channels=[16,32,64,128,128]", "model.decoder_channels=[null,null,64,32]"],
}


def metrics_of(folder, model, *overrides):
    """Metrics of the runs of one method, a list in the order of the seeds."""
    seeds = ",".join(map(str, SEEDS))
    sweep = ["-m", f"model={model}", *SMALL.get(model, []), f"seed={seeds}", f"runs_dir={folder}", *overrides]
    command = [sys.executable, "-m", "anomaly_lab", "train", *sweep]
    cores = str(os.cpu_count() or 1)  # the suite's other tests take one thread
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": cores}, capture_output=True)
    found = [json.loads(path.read_text()) for path in folder.glob(f"*/{model}/*/metrics.json")]
    return [run["metrics"] for run in sorted(found, key=lambda run: run["seed"])]


@pytest.mark.slow
def test_dpae_beats_an_untrained_one_by_more_than_twice_the_spread_over_seeds(tmp_path):
    common = ["trainer.precision=auto", "predictions=none"]
    trained, untrained = (
        np.array([m["image_auroc"] for m in metrics_of(tmp_path / str(n), "dpae", f"trainer.max_epochs={n}", *common)])
        for n in (20, 0)
    )
    spread = max(trained.std(ddof=1), untrained.std(ddof=1))
    print(f"trained {trained}, untrained {untrained}, spread {spread:.3f}")
    assert len(trained) == len(untrained) == len(SEEDS)
    assert trained.mean() - untrained.mean() > 2 * spread
