"""What papers and their code say of each recipe. A row holds all that isn't as in `view.PLAIN`, a delta's row what it
changes. Steps are epochs x images / batch of the source, on the sets of `view.IMAGES`. `DEPARTURES` are ours, on purpose:
the lab note of each has the source's value.
"""

from tests.experiments.published_cnn import BIT, CNN, COATNET
from tests.experiments.published_vit import AUGREG, DEIT, PLAIN_VIT, SCALING, VIT
from tests.experiments.rows import Row

__all__ = ["DEPARTURES", "PUBLISHED"]

PUBLISHED: dict[str, Row] = {**PLAIN_VIT, **AUGREG, **DEIT, **COATNET, **VIT, **SCALING, **BIT, **CNN}

# Three repeats must divide a batch; 160 px are no multiple of 14.
DEPARTURES: dict[str, Row] = {
    "deit": {"batch": 1008, "steps": 381_300},
    "deit3": {"batch": 2064, "steps": 496_576},
    "deit3 + deit3/h14": {"image_size": 154},
    "resnet50_a1": {"batch": 2064, "steps": 372_432},
    "resnet50_a2": {"batch": 2064, "steps": 186_216},
}
