"""The notebooks: run from top to bottom at a tiny size, and stored without outputs."""

from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
TINY = '["dataset.image_size=32", "dataset.batch_size=8", "trainer.estimate=false", "trainer.accelerator=cpu", %s]'
SMALL = {
    "quickstart": {"EPOCHS": "1", "OPTIONS": TINY % '"model.latent_dim=4"'},
    "latent_space": {"EPOCHS": "1", "SIZES": "[4, 8]", "SEEDS": "[0]", "OPTIONS": TINY % ""},
    "segmentation": {
        "EPOCHS": "1",
        "OPTIONS": TINY % '"model.width=4", "model.latent_dim=4", "model.levels=2", "dataset.steps_per_epoch=2"',
        "MODELS": '["ae_unet"]',
    },
    "your_own_folder": {"OPTIONS": TINY % '"model.latent_dim=4", "trainer.max_epochs=1"'},
}


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_stored_but_what_was_written(name):
    for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name, tmp_path):
    from nbclient import NotebookClient

    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    known = {line.partition(" = ")[0] for line in parameters.source.splitlines()}
    assert SMALL[name].keys() <= known
    parameters.source += "\n" + "\n".join(f"{key} = {value}" for key, value in SMALL[name].items())
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in book.cells)
