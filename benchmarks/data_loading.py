"""Images per second of vitlight's training loader beside its peers: the same images, the same crop, two cores, one run.

    python benchmarks/data_loading.py --data DIR --peers DIR --json OUT.json --markdown OUT.md

Every contender of a case is measured once a round, each time in a fresh process, so that what slows the machine for a while
slows all of them; ratios are taken within a round, and medians over the rounds. Images are made on first use, into --data;
--peers is the folder that install_peers.sh filled. benchmarks/README.md says what is measured and how.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import cpu_name
from peers.case import BATCH_SIZE, WORKERS, Case
from photographs import RECIPES, load_case
from tables import render

HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 300.0
MARKS = ("<!-- measured -->", "<!-- end of measured -->")


@dataclass(frozen=True)
class Contender:
    """environment: the folder under --peers whose Python runs it; None is this Python. jpeg_only: differs from another
    contender in nothing else."""

    title: str
    environment: str | None
    jpeg_only: bool = False


CONTENDERS = {
    "vitlight": Contender("vitlight", None),
    "webdataset_pillow": Contender("webdataset + Pillow", "webdataset"),
    "torch_loader": Contender("torch DataLoader + simplejpeg", None),
    "torch_loader_fast": Contender("torch DataLoader + simplejpeg, fast upsampling", None, jpeg_only=True),
    "dali": Contender("DALI (CPU)", "dali"),
    "ffcv": Contender("FFCV", "ffcv"),
    "spdl_ffmpeg": Contender("SPDL", "spdl"),
    "spdl_simplejpeg": Contender("SPDL + simplejpeg", "spdl"),
    "litdata": Contender("litdata + simplejpeg", "litdata"),
    "mosaicml": Contender("mosaicml streaming + simplejpeg", "mosaicml"),
    "decode_only": Contender("bound: decoding alone", None),
    "decode_only_fast": Contender("bound: decoding alone, fast upsampling", None, jpeg_only=True),
}


class Unmeasurable(Exception):
    """A contender can't be run here; the message says why and goes into the table."""


def measure(name: str, case: Case, peers: Path, what: str, *options: str) -> dict[str, Any]:
    """The JSON line of one child process, in a session of its own that is ended with all its workers."""
    environment = CONTENDERS[name].environment
    python = sys.executable
    if environment is not None:
        python = str(peers / environment / "bin" / "python")
        failure = peers / environment / "failed.txt"
        if failure.is_file():
            raise Unmeasurable(failure.read_text().strip())
        if not Path(python).exists():
            raise Unmeasurable(f"not installed: {environment}/ is not in --peers; run install_peers.sh")
    command = [python, str(HERE / "measure.py"), name, case.folder, what, "--spawned", str(time.time()), *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, err = child.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unmeasurable(f"no result within {TIMEOUT_SECONDS:.0f} s") from None
    finally:
        end_session(child)
    if child.returncode or not out.strip():
        raise Unmeasurable(err.strip().splitlines()[-1] if err.strip() else f"exit code {child.returncode}")
    result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return result


def end_session(child: "subprocess.Popen[str]") -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def run_case(case: Case, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one case; contenders that can't be run carry the reason in place of figures."""
    found: dict[str, dict[str, Any]] = {}
    names = [name for name in names if case.extension == "jpg" or not CONTENDERS[name].jpeg_only]
    for name in names:
        entry = found[name] = {"title": CONTENDERS[name].title, "rounds": []}
        attempt(entry, lambda name=name, entry=entry: entry.update(measure(name, case, args.peers, "prepare")))
    for path in Path(case.folder).rglob("*"):
        if path.is_file():
            path.read_bytes()  # into the page cache
    limits = ("--warmup", str(args.warmup), "--seconds", str(args.seconds))
    for number in range(args.rounds):
        turn = number % len(names)  # nobody always follows the same neighbour
        for name in names[turn:] + names[:turn]:
            entry = found[name]

            def one_round(name: str = name, entry: dict[str, Any] = entry) -> None:
                entry["rounds"].append(measure(name, case, args.peers, "rate", *limits))

            if attempt(entry, one_round):
                say(
                    f"{case.name} round {number + 1}/{args.rounds} {name}: {entry['rounds'][-1]['images_per_second']:,.0f}"
                )
    for name in names:
        entry = found[name]
        attempt(entry, lambda name=name, entry=entry: entry.update(stages=measure(name, case, args.peers, "stages")))
    return {"case": case.as_dict(), "contenders": found}


def attempt(entry: dict[str, Any], step: Any) -> bool:
    """Whether the step went well; where not, the entry gets the reason, and no further step is tried."""
    if "reason" in entry:
        return False
    try:
        step()
    except Unmeasurable as error:
        entry["reason"] = str(error)
        say(f"{entry['title']}: {error}")
        return False
    return True


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def machine(cores: list[int]) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores_used": len(cores),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
    }


def names_of(text: str, known: dict[str, Any], setting: str, parser: argparse.ArgumentParser) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{setting}={name} is not one of {', '.join(known)}")
    return names


def write_page(text: str, page: Path) -> None:
    """The tables alone or, in a page that has the marks, between them."""
    if page.is_file() and all(mark in page.read_text() for mark in MARKS):
        before, _, rest = page.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        text = f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}"
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the images are, or get made")
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR", help="what install_peers.sh filled")
    parser.add_argument("--cases", default=",".join(RECIPES), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--warmup", type=float, default=1.5, metavar="SECONDS", help="after the first batch; default: 1.5"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="SECONDS", help="measured; default: 5")
    parser.add_argument("--json", type=Path, metavar="OUT", help="every round's figures")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="gets the tables; without it: printed")
    args = parser.parse_args()
    cases = names_of(args.cases, RECIPES, "--cases", parser)
    names = names_of(args.contenders, CONTENDERS, "--contenders", parser)
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds} is not at least 1")
    cores = sorted(os.sched_getaffinity(0))[:WORKERS]
    if len(cores) < WORKERS:
        parser.error(f"{len(cores)} core is usable, and the contenders are given {WORKERS}")
    os.sched_setaffinity(0, cores)  # the children inherit it
    start = time.time()
    results: dict[str, Any] = {"machine": machine(cores), "batch_size": BATCH_SIZE, "rounds": args.rounds, "cases": []}
    for name in cases:
        say(f"{name}: images and formats")
        results["cases"].append(run_case(load_case(name, args.data.resolve()), names, args))
        results["minutes"] = (time.time() - start) / 60
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    text = render(results)
    if args.markdown:
        write_page(text, args.markdown)
    else:
        print(text)


if __name__ == "__main__":
    main()
