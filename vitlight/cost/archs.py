"""One row of cost for each listed architecture."""

import json
from pathlib import Path
from typing import Any

import torch

from vitlight.cost.counts import count_params
from vitlight.cost.trace import ShapesOnly, build_on_meta, meta_image
from vitlight.errors import InputError
from vitlight.models import arch_family, default_image_size, list_archs

__all__ = ["FILE", "count_models", "dump_table", "model_table"]

# Made anew by: python -c "from vitlight.cost import archs; archs.FILE.write_text(archs.dump_table(archs.count_models()))"
FILE = Path(__file__).parents[1] / "models" / "table.json"


def dump_table(rows: list[dict[str, Any]]) -> str:
    """JSON with a line a row, so that a change of one architecture is a change of one line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def model_table(image_size: int | None = None) -> list[dict[str, Any]]:
    """One row for each listed architecture: arch, family, params, forward_macs, image_size and reason.

    At `image_size`, or at each architecture's own default resolution (224 or the multiple of the patch below it; 32 for
    the ladders). Where an architecture can't take `image_size`, params and forward_macs are None and `reason` says why;
    else `reason` is None. 1000 classes and 3 channels. The default table was counted when the architectures were last
    changed and is kept beside them (a test holds it equal to `count_models`); any other takes seconds to count.
    """
    return json.loads(FILE.read_text()) if image_size is None else count_models(image_size)


def count_models(image_size: int | None = None) -> list[dict[str, Any]]:
    """`model_table`, counted now, with torch's formulas alone and each operator run once for a given shape; a test holds
    it equal to `forward_macs`."""
    rows = []
    for arch in list_archs():
        side = default_image_size(arch) if image_size is None else image_size
        row = {"arch": arch, "family": arch_family(arch), "params": None, "forward_macs": None, "image_size": side}
        try:
            model = build_on_meta(arch, side).eval()
        except InputError as error:
            rows.append(row | {"reason": str(error)})
            continue
        with torch.no_grad(), ShapesOnly() as shapes:
            model(meta_image(model, side))
        rows.append(row | {"params": count_params(model), "forward_macs": shapes.macs, "reason": None})
    return rows
