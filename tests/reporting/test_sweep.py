from terminal import line_with, text_of

from anomaly_lab.reporting.sweep import sweep_table


def job(latent_dim, seed, **more):
    metrics = {"image_auroc": 0.6 + seed / 10, "image_auroc_ci": [0.5, 0.8], "floor_knn_auroc": 0.65, "image_f1": 0.46}
    return {
        "overrides": [f"model.latent_dim={latent_dim}", f"seed={seed}", "trainer.max_epochs=1"],
        "status": "finished",
        "run": f"/somewhere/runs/mt/dpae/a1b2c3d{latent_dim % 10}-s{seed}",
        "metrics": metrics,
        "reasons": {},
        "seconds": {"train": 3180.0, "evaluate": 20.0},
        "cause": None,
        **more,
    }


def test_a_sweep_has_one_row_per_job():
    text = text_of(sweep_table([job(d, s) for d in (16, 32) for s in (0, 1)]))
    rows = [line.split() for line in text.splitlines() if line.startswith("model.latent_dim=") and "-s" in line]
    assert rows[0] == ["model.latent_dim=16", "finished", "!", "0.600", "0.650", "0.460", "53", "min", "a1b2c3d6-s0"]
    assert rows[3] == ["model.latent_dim=32", "finished", "0.700", "0.650", "0.460", "53", "min", "a1b2c3d2-s1"]
    assert len(rows) == 4
    assert text.count("[0.50, 0.80]") == 4
    assert text.count("trainer.max_epochs=1") == 1  # what all share is said once
    assert "all jobs: trainer.max_epochs=1" in text
    assert "runs below /somewhere/runs/mt/dpae" in text
    assert "! below the thumbnail floor" in text


def test_a_failed_job_is_named_with_the_first_line_of_its_cause():
    failed = job(-3, 0, status="failed", run=None, metrics={}, seconds={}, cause="it must be positive\nTraceback ...")
    text = text_of(sweep_table([job(16, 0), failed]))
    assert line_with(text, "model.latent_dim=-3").split() == ["model.latent_dim=-3", "failed", *"—————"]
    assert "failed: model.latent_dim=-3: it must be positive" in text
    assert "Traceback" not in text


def test_a_failure_without_a_cause_says_so():
    failed = {"overrides": [], "status": "failed", "run": None, "cause": None}
    assert "no cause was recorded" in text_of(sweep_table([failed]))


def test_runs_of_several_models_are_told_apart():
    text = text_of(sweep_table([job(16, 0), job(16, 0, run="/somewhere/runs/mt/vae/ffffffff-s0")]))
    assert "dpae/a1b2c3d6-s0" in text
    assert "vae/ffffffff-s0" in text
    assert "runs below /somewhere/runs/mt\n" in "\n".join(map(str.rstrip, text.splitlines())) + "\n"


def test_runs_that_have_no_folder_in_common_are_written_out():
    text = text_of(sweep_table([job(16, 0), job(32, 0, run="runs/b-s0")]), width=120)
    assert "runs below" not in text
    assert "runs/b-s0" in text


def test_one_job_keeps_its_overrides():
    assert "seed=0" in text_of(sweep_table([job(16, 0)]))


def test_a_sweep_without_jobs_is_an_empty_table():
    assert "status" in text_of(sweep_table([]))


def test_a_sweep_of_segmenters_shows_their_pixels():
    rows = [{"overrides": [f"seed={i}"], "status": "finished", "run": f"runs/x/unet/1a2b3c4d-s{i}"} for i in range(2)]
    pixels = {
        "image_auroc": 0.7,
        "image_f1": 0.123,
        "pixel_threshold_rule": "method",
        "pixel_iou_defect": 0.456,
        "pixel_aupro": 0.789,
    }
    text = text_of(sweep_table([row | {"metrics": pixels} for row in rows]))
    assert {"0.456", "0.789"} <= set(line_with(text, "seed=1").split())
    assert "0.123" not in text
    assert "IoU is the one at the threshold to deploy" in text


def test_without_defects_to_test_on_val_s_auroc_is_shown_to_choose_by():
    untested = {"image_auroc": None, "val_image_auroc": 0.875, "pixel_threshold_rule": "method"}
    rows = [job(d, s, metrics=untested, status="skipped") for d in (16, 32) for s in (0, 1)]
    text = text_of(sweep_table(rows))
    assert {"0.875", "skipped"} <= set(line_with(text, "model.latent_dim=32").split())
    assert "AUROC on val" in text
    assert "choose by val" in text
    assert "skipped: it was finished before" in text
    assert not {"—", "AUPRO", "(1-NN)", "F1"} & set(text.split())
    assert "0.875 ± 0.000" in text


def test_jobs_that_differ_in_seeds_only_have_a_mean():
    text = text_of(sweep_table([job(d, s) for d in (16, 32) for s in (0, 1)]))
    below = text[text.index("mean ± standard deviation") :]
    # 0.6 and 0.7, and twice the same
    expected = "model.latent_dim=16 2 0.650 ± 0.071 0.650 ± 0.000 0.460 ± 0.000"
    assert " ".join(line_with(below, "model.latent_dim=16").split()) == expected
    alone = text_of(sweep_table([job(16, s) for s in (0, 1)]))
    assert line_with(alone, "all jobs  ").split()[:3] == ["all", "jobs", "2"]


def test_jobs_of_one_seed_have_no_mean():
    assert "standard deviation" not in text_of(sweep_table([job(d, 0) for d in (16, 32)]))


def test_a_missing_value_leaves_no_mean():
    rows = [job(16, 0), job(16, 1, metrics={"image_auroc": 0.6}), job(32, 0)]
    text = text_of(sweep_table(rows))
    below = text[text.index("mean ± standard deviation") :]
    assert line_with(below, "model.latent_dim=16").split() == [
        "model.latent_dim=16",
        "2",
        "0.600",
        "±",
        "0.000",
        "—",
        "—",
    ]
    assert line_with(below, "model.latent_dim=32").split()[-3:] == ["0.600", "0.650", "0.460"]


def test_jobs_tested_on_other_images_are_marked():
    rows = [job(16, 0, tested="a"), job(16, 1, tested="b")]
    assert "tested on 2 different lists of images" in text_of(sweep_table(rows))
    assert "different lists" not in text_of(sweep_table([row | {"tested": "a"} for row in rows]))


def test_failed_and_repeated_jobs_do_not_count_in_a_mean():
    rows = [job(16, 0), job(16, 1), job(16, 0), job(16, 2, status="failed", cause="another configuration")]
    text = text_of(sweep_table(rows))
    below = text[text.index("mean ± standard deviation") :]
    assert line_with(below, "all jobs  ").split()[:5] == ["all", "jobs", "2", "0.650", "±"]


def test_the_split_s_seed_repeats_a_job_too():
    rows = [job(16, s) | {"overrides": [f"+seed={s}", f"dataset.split_seed={s}"]} for s in (0, 1)]
    assert line_with(text_of(sweep_table(rows)), "all jobs  ").split()[:3] == ["all", "jobs", "2"]
