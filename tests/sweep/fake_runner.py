"""`vitlight sweep run FILE --root ROOT --jobs N` on the fake `fit`, as a process that tests can signal and kill."""

import signal
import sys
from pathlib import Path

from tests.sweep import fake_fit
from vitlight.sweep import LocalExecutor, load_sweep, run_sweep

FIT = (sys.executable, "-m", "tests.sweep.fake_fit")

if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGHUP):  # as in a terminal, also where the tests run in the background
        signal.signal(signum, signal.SIG_DFL)
    sweep_file, root, jobs = sys.argv[1:]
    executor = LocalExecutor(int(jobs), FIT)
    outcome = run_sweep(load_sweep(sweep_file), fake_fit.resolve, Path(root), executor=executor, poll_seconds=0.05)
    print(f"started {outcome.num_started} done {outcome.num_done} failed {len(outcome.failures)}", flush=True)
    sys.exit(outcome.exit_code)
