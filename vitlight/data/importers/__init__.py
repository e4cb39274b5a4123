"""Images as they are handed out -> indexed shards. One module a kind of source; `packing` has what all of them share."""

from vitlight.data.importers.idx import read_idx
from vitlight.data.importers.packing import pack
from vitlight.data.importers.split import Source, SourceOptions, Split

__all__ = ["Source", "SourceOptions", "Split", "pack", "read_idx"]
