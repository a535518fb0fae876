"""`anomaly-lab dashboard project=NAME`: what a project at Weights & Biases shows, as code.

A workspace, where runs are looked at while they come, and a report to hand on; both of the metrics that `logger=wandb`
sends. Only saving them needs a server.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anomaly_lab.arguments import own_options, require_options
from anomaly_lab.data.plan import known_datasets
from anomaly_lab.errors import ConfigError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

log = logging.getLogger("anomaly_lab")

_OPTIONS = ("project", "entity")
_RANKED = {"image_auroc": "AUROC", "floor_knn_auroc": "the floor's AUROC", "pixel_aupro": "AUPRO", "image_f1": "F1"}


def main(arguments: Sequence[str]) -> int:
    """Run `anomaly-lab dashboard [project=NAME] [entity=NAME]`: make both anew and say where they are."""
    require_options("dashboard", arguments, _OPTIONS)
    asked = own_options(arguments, _OPTIONS)
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise ConfigError("dashboard needs a further package: pip install 'anomaly-lab[dashboards]'.") from None
    if "WANDB_API_KEY" not in os.environ:
        raise ConfigError("dashboard needs a server: set WANDB_API_KEY, and send offline runs by `wandb sync`.")
    try:
        entity = asked.get("entity") or wandb.Api().default_entity
        project = asked.get("project", "anomaly_lab")
        for made in (make_workspace(str(entity), project), make_report(str(entity), project)):
            made.save()
            log.info("%s", made.url)
    except (wandb.errors.Error, OSError) as error:
        raise ConfigError(f"Weights & Biases did not take it: {error}.") from None
    return 0


def make_workspace(entity: str, project: str) -> Workspace:
    """Methods and datasets, the sweep over d, training and pictures, a section each."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name="anomaly_lab",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in _sections().items()],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("dataset.name"), ws.Config("model.name")], filters="Metric('JobType') != 'stage 1'"
        ),
    )


def make_report(entity: str, project: str) -> Report:
    """The same for reading: each part with a sentence on how to read it."""
    import wandb_workspaces.reports.v2 as wr

    about = {
        "Methods and datasets": "A bar for each dataset and method: the mean of its runs, whatever else they differ "
        "in. A method below the floor, the nearest neighbour on thumbnails, has learnt nothing of use.",
        "Latent size": "One point for each run, a colour for each dataset; the seeds of one size lie above each other.",
        "Training": "The mean loss of each epoch.",
        "Pictures": "The image with what is true and what was found, the reconstruction, their difference and the map.",
    }
    # the first of two stages is no method of its own
    finished = "Metric('State') == 'finished' and Metric('JobType') != 'stage 1'"
    where = {"entity": entity, "project": project}
    grouped = wr.Runset(**where, groupby=["config.dataset.name", "config.model.name"], filters=finished)
    known = list(known_datasets())
    by_dataset = [
        wr.Runset(**where, name=name, filters=f"{finished} and Config('dataset.name') == '{name}'") for name in known
    ]
    others = " and ".join(f"Config('dataset.name') != '{name}'" for name in known)
    by_dataset.append(wr.Runset(**where, name="of your own", filters=f"{finished} and {others}"))
    blocks: list[Any] = [wr.TableOfContents()]
    for name, panels in _sections().items():
        runsets = [grouped] if name == "Methods and datasets" else by_dataset
        blocks += [wr.H1(text=name), wr.P(text=about[name]), wr.PanelGrid(runsets=runsets, panels=panels)]
    return wr.Report(
        entity=entity, project=project, title="anomaly_lab: methods, datasets and latent size", blocks=blocks
    )


def _sections() -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    def over_methods(metric: str, title: str) -> Any:
        # a bar for each group of the runs, which are grouped by dataset and method
        return wr.BarPlot(
            title=title, metrics=[wr.SummaryMetric(metric)], groupby_aggfunc="mean", groupby_rangefunc="stddev"
        )

    def over_size(metric: str, title: str) -> Any:
        size, value = wr.Config("model.latent_dim"), wr.SummaryMetric(metric)
        return wr.ScatterPlot(title=f"{title} over d", x=size, y=value, log_x=True, running_ymean=True)

    return {
        "Methods and datasets": [over_methods(metric, title) for metric, title in _RANKED.items()],
        "Latent size": [over_size(metric, title) for metric, title in _RANKED.items() if metric != "image_f1"],
        "Training": [wr.LinePlot(title="loss", x="epoch", y=["loss"], log_y=True)],
        "Pictures": [
            wr.MediaBrowser(title=kind, media_keys=[f"gallery/{kind}"], num_columns=4)
            for kind in ("image", "reconstruction", "difference", "map")
        ],
    }
