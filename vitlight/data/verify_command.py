"""`vitlight data index | verify`: the parsers, built with argparse alone, and their handlers."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlight.data.faults import Fault
    from vitlight.data.labels import LabelSource

__all__ = ["add_index_parser", "add_label_arguments", "add_verify_parser", "label_source"]

_SHARDS_HELP = "a folder of tars, a glob, a brace pattern, one tar, a .txt that lists them, or a URL"


def add_index_parser(actions: Any) -> None:
    index = actions.add_parser("index", help=(text := "index shards, whoever wrote them"), description=text)
    index.set_defaults(handler=_index)
    index.add_argument("source", metavar="SHARDS", help=_SHARDS_HELP)
    _add_arguments(index)


def add_verify_parser(actions: Any) -> None:
    text = "read every byte of shards and list all that is wrong with them; exit code 1 where anything is"
    verify = actions.add_parser("verify", help=text, description=text)
    verify.set_defaults(handler=_verify)
    verify.add_argument("source", metavar="SHARDS", help=_SHARDS_HELP)
    _add_arguments(verify)
    verify.add_argument("--num-classes", type=int, metavar="K", help="labels lie in 0 to K - 1")
    verify.add_argument("--no-decode", action="store_true", help="look at the ends of images, but don't decode them")
    verify.add_argument("--show", type=int, default=10, metavar="N", help="rows of each kind (default: 10)")
    verify.add_argument("--json", action="store_true", help="print everything found as one JSON object")


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings data.labels.* and data.image_part, read back by `label_source` and as `args.image_part`."""
    parser.add_argument(
        "--label-field", default="label", metavar="NAME", help="field of the .json part (default: label)"
    )
    parser.add_argument(
        "--label-part",
        choices=("cls", "json", "txt"),
        help="part with the label (default: the first of these there is)",
    )
    parser.add_argument(
        "--class-file",
        metavar="FILE",
        help="class names: one a line, or .json (default: classes.txt beside the shards)",
    )
    parser.add_argument("--multi-label", action="store_true", help="samples have one or more labels")
    parser.add_argument("--image-part", metavar="EXTENSION", help="the part to take where samples have several images")


def label_source(args: argparse.Namespace) -> "LabelSource":
    from vitlight.data.labels import LabelSource

    return LabelSource(args.label_field, args.label_part, args.class_file, args.multi_label)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index-dir", type=Path, metavar="DIR", help="where the index is (default: with the shards)")
    parser.add_argument("--processes", type=int, metavar="N", help="processes (default: one for each 64 shards)")
    add_label_arguments(parser)


def _index(args: argparse.Namespace) -> int:
    from vitlight.data.index import load_index

    index = load_index(
        args.source,
        args.index_dir,
        labels=label_source(args),
        image_part=args.image_part,
        num_processes=args.processes,
    )
    print(
        f"{len(index):,} images of {index.num_classes:,} classes in {len(index.shards):,} shards, "
        f"{int(index.num_bytes.sum()) / 1e6:,.1f} MB, digest {index.digest[:12]}: {index.folder}"
    )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from vitlight.data.progress import progress
    from vitlight.data.shard_set import ShardSet
    from vitlight.data.sources import is_remote, resolve_shards
    from vitlight.data.verify import verify

    shards = ShardSet(resolve_shards(args.source), args.index_dir, label_source(args), args.image_part)
    folder = Path(args.source) if not is_remote(args.source) and Path(args.source).is_dir() else None
    reports = verify(
        shards, folder=folder, num_classes=args.num_classes, decode=not args.no_decode, num_processes=args.processes
    )
    found = _Json() if args.json else _Table(args.show)
    read: set[str] = set()
    bad: set[str] = set()
    num_samples = num_bytes = 0
    with progress("Verifying", len(shards.shards), "shards") as advance:
        for report in reports:
            num_samples += report.num_samples
            num_bytes += report.num_bytes
            found.add(report.faults)
            bad |= {report.shard} if report.faults else set()
            if report.shard not in read:
                advance(1)
            read.add(report.shard)
    summary = {
        "num_shards": len(shards.shards),
        "num_bad_shards": len(bad),
        "num_sound_samples": num_samples,
        "num_bytes": num_bytes,
        "num_problems": found.counts.total(),
        "num_of_kind": dict(sorted(found.counts.items())),
    }
    found.end(summary)
    return 1 if found.counts else 0


class _Json:
    """One object, printed as it comes: its list of problems may be longer than memory is large."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, faults: "Iterable[Fault]") -> None:
        for fault in faults:
            print(",\n " if self.counts else '{"problems": [\n ', end="")
            print(
                json.dumps({"kind": fault.kind, "shard": fault.shard, "key": fault.key, "detail": fault.detail}), end=""
            )
            self.counts[fault.kind] += 1

    def end(self, summary: dict[str, Any]) -> None:
        print("]," if self.counts else '{"problems": [],', json.dumps(summary)[1:])


class _Table:
    """The first rows of each kind, sorted by kind, and how many there are."""

    def __init__(self, num_shown: int) -> None:
        self.counts: Counter[str] = Counter()
        self._num_shown = num_shown
        self._rows: dict[str, list[tuple[str, str, str, str]]] = {}

    def add(self, faults: "Iterable[Fault]") -> None:
        for fault in faults:
            rows = self._rows.setdefault(fault.kind, [])
            if len(rows) < self._num_shown:
                rows.append((fault.kind, fault.shard, fault.key or "-", fault.detail))
            self.counts[fault.kind] += 1

    def end(self, summary: dict[str, Any]) -> None:
        rows = [row for kind in sorted(self._rows) for row in sorted(self._rows[kind])]
        if rows:
            table = [("problem", "shard", "key", "detail"), *rows]
            widths = [max(len(row[i]) for row in table) for i in range(3)]
            for row in table:
                print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3], sep="  ")
            print()
        read = (
            f"{summary['num_shards']:,} shards, {summary['num_sound_samples']:,} sound samples, "
            f"{summary['num_bytes'] / 1e6:,.1f} MB read"
        )
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.counts.items()))
        total = f"{self.counts.total():,} problems in {summary['num_bad_shards']:,} shards: {kinds}"
        hidden = " (--json lists all)" if len(rows) < self.counts.total() else ""
        print(f"{read}; {total}{hidden}" if self.counts else f"{read}; nothing wrong")
