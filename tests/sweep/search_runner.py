"""`vitlight sweep run FILE --root ROOT --jobs N` on the cells of `searched_fit`, as a process that tests can kill."""

import sys
from pathlib import Path

from tests.sweep import searched_fit
from vitlight.sweep import LocalExecutor, load_sweep, run_sweep

if __name__ == "__main__":
    sweep_file, root, jobs = sys.argv[1:]
    executor = LocalExecutor(int(jobs), (sys.executable, "-m", "tests.sweep.searched_fit"))
    outcome = run_sweep(load_sweep(sweep_file), searched_fit.resolve, Path(root), executor=executor, poll_seconds=0.05)
    sys.exit(outcome.exit_code)
