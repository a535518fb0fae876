"""`anomaly-lab dashboard`: what is made, without a server. Saving it is wandb's part and was not tried here."""

import pytest

from anomaly_lab.cli import main
from anomaly_lab.workspace import make_report, make_workspace

pytest.importorskip("wandb_workspaces")


def test_the_workspace_shows_what_runs_send():
    made = make_workspace("us", "tiles")
    assert [section.name for section in made.sections] == [
        "Methods and datasets",
        "Latent size",
        "Training",
        "Pictures",
    ]
    methods, sizes, training, pictures = (section.panels for section in made.sections)
    assert [panel.metrics[0].name for panel in methods] == ["image_auroc", "floor_knn_auroc", "pixel_aupro", "image_f1"]
    assert {(panel.x.name, panel.log_x) for panel in sizes} == {("model.latent_dim", True)}
    assert training[0].y == ["loss"]
    assert [panel.media_keys for panel in pictures] == [
        [f"gallery/{kind}"] for kind in ["image", "reconstruction", "difference", "map"]
    ]


def test_the_report_says_how_to_read_each_part():
    made = make_report("us", "tiles")
    headings = [block.text for block in made.blocks if type(block).__name__ == "H1"]
    assert headings == ["Methods and datasets", "Latent size", "Training", "Pictures"]
    grids = [block for block in made.blocks if type(block).__name__ == "PanelGrid"]
    assert {(runset.entity, runset.project) for grid in grids for runset in grid.runsets} == {("us", "tiles")}
    assert grids[0].runsets[0].groupby == ["config.dataset.name", "config.model.name"]
    assert {"mt", "mvtec", "folder"} <= {runset.name for runset in grids[1].runsets}
    (tiles,) = (runset.filters for runset in grids[1].runsets if runset.name == "mt")
    assert all(text in str(tiles) for text in ("JobType", "stage 1", "dataset.name"))


def test_without_a_key_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", "project=tiles"]) == 2
    assert "set WANDB_API_KEY" in capsys.readouterr().err
    assert main(["dashboard", "projet=tiles"]) == 2
    assert "Did you mean 'project'" in capsys.readouterr().err


def test_a_server_that_refuses_is_said(monkeypatch, capsys):
    import wandb
    from wandb_workspaces.workspaces import Workspace

    def refuse(self):
        raise wandb.errors.CommError("nobody is there")

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(Workspace, "save", refuse)
    assert main(["dashboard", "entity=us"]) == 2
    assert "did not take it: nobody is there" in capsys.readouterr().err
