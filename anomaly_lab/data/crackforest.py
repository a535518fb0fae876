"""The CrackForest road dataset: cracked surfaces with pixel-level ground truth, and no normal images."""

from __future__ import annotations

from anomaly_lab.data.layouts import contents, log, make_records, name_list, place, warn_other_count
from anomaly_lab.data.records import DefectDataset, Record, image_files
from anomaly_lab.errors import DataError


class CrackForest(DefectDataset):
    """Photographs of urban road surfaces, each with cracks.

    Layout: `<root>/image/<stem>.jpg`, the ground truth as `<root>/groundTruth/<stem>.mat`. The 37 public images
    without ground truth are left out: some have cracks, some have none, and nothing says which.
    """

    name = "crackforest"
    folder = "crackforest"
    how_to_get = (
        "The CrackForest dataset (Shi, Cui, Qi, Meng and Chen, Automatic road crack detection using random structured "
        "forests, IEEE Transactions on Intelligent Transportation Systems, 2016) is public: anomaly-lab data get "
        "crackforest brings it. The folder has to hold image and groundTruth."
    )
    licence = "non-commercial research"
    marker = "groundTruth"
    address = "https://github.com/cuilimeng/CrackForest-dataset/archive/refs/heads/master.zip"
    files = {  # noqa: RUF012  # of the class
        "image": (155, "50b61ec7ff8df66893c775ca9657db7103c0664dcf7f780a471407f907af8fa3"),
        "groundTruth": (118, "891f99f2749632f31a223c0ae1a951fca29395fba7070e06da06b29b42993956"),
    }

    def scan(self) -> list[Record]:
        """The images with ground truth, all of the type `crack`."""
        root = self.root
        images, truths = root / "image", root / "groundTruth"
        for folder in (images, truths):
            if not folder.is_dir():
                raise DataError(
                    f"{self.name}: there is no {folder.name} in {root}; {contents(root)}. {self.how_to_get}"
                )
        masks = {place(path, truths): path for path in sorted(truths.glob("*.mat")) if not path.name.startswith(".")}
        found = list(image_files(images))
        annotated = [path for path in found if place(path, images) in masks]
        if not annotated:
            raise DataError(
                f"{self.name}: no image in {images} has ground truth of its name in {truths}; {contents(truths)}. "
                f"{self.how_to_get}"
            )
        left_out = [path.name for path in found if path not in annotated]
        if left_out:
            log.warning(
                "%s: %d images without ground truth are left out, since it is not known whether they have cracks (%s).",
                *(self.name, len(left_out), name_list(left_out)),
            )
        records = make_records(self.name, root, dict.fromkeys(annotated, "crack"), base=images, masks=masks)
        warn_other_count(self.name, records, normal=0, defective=118)
        return records
