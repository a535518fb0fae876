"""The tables and figures of the papers as data: `experiments/*/*.yaml`, what each asks for and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, PrivateAttr, ValidationError, model_validator

from anomaly_lab.config import conf_dir, shipped
from anomaly_lab.errors import ConfigError, nearest
from anomaly_lab.files import read_yaml
from anomaly_lab.metrics.statistics import CLOSE

Axis = Literal["datasets", "methods", "metrics"]
Figure = Literal["roc", "lines", "latents", "examples", "reconstructions", "augmentations", "segmentations"]
AXES: tuple[Axis, ...] = get_args(Axis)


class Cell(NamedTuple):
    """One number of a table: names on the three axes."""

    dataset: str
    method: str
    metric: str


class Experiment(BaseModel):
    """A table: what stands in its rows and columns, the runs it needs, and the values that the paper prints.

    A cell is a dataset, a method and a metric; a run is a dataset, a method and a seed, so cells share runs.

    Attributes:
        name: of the file, such as `dpae/table4`.
        title: what the table shows.
        source: the paper, and its table, figure or section.
        rows: axes down the side, the outer one first; an axis in neither has one entry.
        columns: axes along the top, the outer one first.
        datasets: name -> overrides of `anomaly-lab train`.
        methods: name -> overrides.
        options: overrides of all its runs.
        metrics: name -> the name in metrics.json (dots lead within: `per_defect.crack.image_auroc`), or `count_...` and
            `defect_ratio` of the split, which need no run.
        seeds: how many; each is the training's and the split's.
        close: reach of an interval to each side, up to which a printed value counts as reproduced; null for metrics
            that are no shares of one: a tenth of the printed value.
        mean: name of a last row that averages the datasets above it.
        figure: what is drawn from the same runs.
        printed: source -> row -> values, in the order of the columns; what is not printed is null, or left off at the
            end of a row.
        notes: what a reader has to know of the printed values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: str
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    datasets: dict[str, tuple[str, ...]]
    methods: dict[str, tuple[str, ...]]
    metrics: dict[str, str]
    options: tuple[str, ...] = ()
    seeds: PositiveInt = 20
    close: NonNegativeFloat | None = CLOSE
    mean: str | None = None
    figure: Figure | None = None
    printed: dict[str, dict[str, tuple[float | None, ...]]] = {}
    notes: tuple[str, ...] = ()

    _printed: dict[Cell, dict[str, float]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> Experiment:
        if self.mean and self.rows != ("datasets",):
            raise ValueError("a mean is over datasets, which have to be the rows")
        named = [*self.rows, *self.columns]
        if len(set(named)) < len(named):
            raise ValueError("an axis stands twice in rows and columns")
        for axis in AXES:
            count = len(self.axis(axis))
            if count != 1 and axis not in named:
                raise ValueError(f"{axis} has {count} entries and stands in neither rows nor columns")
        for name, overrides in self.methods.items():
            if not any(text.startswith("model=") for text in overrides):
                raise ValueError(f"the method {name} names no model=...")
        rows, columns = {", ".join(row.values()): row for row in self.row_places()}, self.places(self.columns)
        for source, lines in self.printed.items():
            for name, values in lines.items():
                if name not in rows:
                    raise ValueError(f"printed, {source}: there is no row {name!r}; rows are {'; '.join(rows)}")
                if len(values) > len(columns):
                    raise ValueError(f"printed, {source}, {name}: {len(values)} values for {len(columns)} columns")
                for column, value in zip(columns, values, strict=False):
                    if value is not None:
                        self._printed.setdefault(self.cell(rows[name], column), {})[source] = value
        return self

    def narrowed(self, axes: dict[str, dict[str, tuple[str, ...]]]) -> Experiment:
        """The same table of fewer datasets or methods, or of others; values stay with their names."""
        others = axes.get("datasets", self.datasets).keys() != self.datasets.keys()
        narrower = self.model_copy(update=axes | ({"mean": None} if others else {}))
        if not narrower.datasets.keys() & self.datasets.keys():  # what is said of the paper's own says nothing here
            narrower = narrower.model_copy(update={"notes": ()})
        named = {*narrower.rows, *narrower.columns}
        hidden = tuple(axis for axis in AXES if axis not in named and len(narrower.axis(axis)) > 1)
        return narrower.model_copy(update={"rows": (*narrower.rows, *hidden)})

    def axis(self, name: Axis) -> dict[str, Any]:
        """The entries of an axis."""
        entries: dict[str, Any] = getattr(self, name)
        return entries

    def places(self, axes: Sequence[Axis]) -> list[dict[Axis, str]]:
        """All combinations of entries of some axes, the last one fastest."""
        return [dict(zip(axes, names, strict=True)) for names in product(*(self.axis(axis) for axis in axes))]

    def row_places(self) -> list[dict[Axis, str]]:
        """All rows, that of the mean last."""
        return self.places(self.rows) + ([{"datasets": self.mean}] if self.mean else [])

    def cell(self, row: dict[Axis, str], column: dict[Axis, str]) -> Cell:
        """The cell at a row and a column."""
        only = {axis: next(iter(self.axis(axis))) for axis in AXES}
        where = only | row | column
        return Cell(where["datasets"], where["methods"], where["metrics"])

    def printed_at(self, cell: Cell) -> dict[str, float]:
        """What each source prints in a cell."""
        return self._printed.get(cell, {})

    @property
    def needs_runs(self) -> bool:
        """Whether anything has to be trained for it."""
        return not all(is_of_split(metric) for metric in self.metrics.values())


def is_of_split(metric: str) -> bool:
    """Whether a metric counts images, for which nothing has to be trained."""
    return metric.startswith("count_") or metric == "defect_ratio"


def experiments_dir() -> Path:
    """The folder of the shipped definitions."""
    return shipped("experiments")


def names() -> list[str]:
    """The shipped experiments, such as `dpae/table4`."""
    root = experiments_dir()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml"))


def load(name: str) -> Experiment:
    """The experiment of a shipped name, or of a YAML file of one's own.

    Raises:
        ConfigError: if there is none, or it does not say what an experiment has to say.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        name = path.stem
    elif name in names():
        path = experiments_dir() / f"{name}.yaml"
    else:
        raise ConfigError(f"There is no experiment {name!r}. {nearest(name, names())}")
    try:
        return Experiment.model_validate({"name": name, **_read(path)})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{first['msg']}.") from None


def load_settings(name: str, experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Overrides by model, and under `all` those of every model, of a shipped name or of a YAML file of one's own.

    Raises:
        ConfigError: if there are none, or they are no lists of overrides, or of a model that neither the experiment nor
            the package has.
    """
    known = sorted(path.stem for path in experiments_dir().glob("*.yaml"))
    path = Path(name)
    if path.suffix != ".yaml":
        if name not in known:
            raise ConfigError(f"There are no settings={name}. {nearest(name, known)} Or give a YAML file of your own.")
        path = experiments_dir() / f"{name}.yaml"
    content = _mapping(path)
    models = {path.stem for path in (conf_dir() / "model").glob("[!_]*.yaml")}
    models |= {
        text.partition("=")[2] for own in experiment.methods.values() for text in own if text.startswith("model=")
    }
    for model, overrides in content.items():
        if model not in {"all", *models}:
            raise ConfigError(f"{path}: there is no model {model!r}. {nearest(model, sorted(models))}")
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise ConfigError(f"{path}: {model} has to be a list of overrides such as [model.width=16].")
    return {model: tuple(overrides) for model, overrides in content.items()}


def _read(path: Path) -> dict[str, Any]:
    """A definition with that which it is `like` under it."""
    content = _mapping(path)
    like = content.pop("like", None)
    return content if like is None else {**_read(experiments_dir() / f"{like}.yaml"), **content}


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file of names and what they stand for; names such as 16 are text."""
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has to hold names and what they stand for, `title: ...` for example.")
    named: dict[str, Any] = _named(content)
    return named


def _named(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key): _named(value) for key, value in tree.items()}
    return tree
