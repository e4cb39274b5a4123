"""Published results that come with the package: figures as their sources print them, each row with its citation."""

from pathlib import Path

import pandas as pd

from vitlight.analysis.columns import TABLE_COLUMNS, build_table
from vitlight.analysis.csv_records import read_records
from vitlight.analysis.sheets import read_sheet
from vitlight.errors import InputError, did_you_mean

__all__ = ["PREFIX", "PUBLISHED", "load_published", "published_path"]

PREFIX = "published:"
PUBLISHED = {
    "models": "ImageNet accuracy, parameters and forward MACs of CoAtNet, ViT, BiT, NFNet, ConvNeXt, ... with their data",
    "scaling_vit": "nine ViTs x 30M to 3B images of JFT x steps, finetuned and few-shot (Zhai et al. 2021)",
    "vit_data": "five ViTs pretrained on ImageNet, ImageNet-21k and JFT-300M (Dosovitskiy et al. 2020, Table 5)",
    "vit_compute": "ViTs, ResNets and hybrids against pretraining exaFLOPs on JFT (Dosovitskiy et al. 2020, Table 6)",
    "augreg": "nine models x augmentation x regularisation x data (Steiner et al. 2021, Figure 4)",
}
_FOLDER = Path(__file__).parent / "published"


def published_path(name: str) -> Path:
    """The CSV of a published table. InputError for a name that is none of PUBLISHED."""
    if name not in PUBLISHED:
        near = did_you_mean(name, PUBLISHED) or f"; there are {', '.join(PUBLISHED)}"
        raise InputError(f"no published table {name!r}{near}")
    return _FOLDER / f"{name}.csv"


def load_published(name: str = "models") -> pd.DataFrame:
    """A published table (a name of PUBLISHED) with the columns of `load_table`. InputError for another name."""
    return build_table(read_records(read_sheet(published_path(name), PREFIX + name)), TABLE_COLUMNS)
