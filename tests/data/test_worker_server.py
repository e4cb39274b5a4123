"""Loader workers from a server that was forked, not started as an interpreter."""

import json
import subprocess
import sys

CODE = """
import json, multiprocessing, os, signal, sys
marker = []

def work(queue):
    paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    open_files = [os.readlink(path) for path in paths if os.path.exists(path)]
    blocked = sorted(number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    queue.put({
        "forked": len(sys.modules["__main__"].marker), "parent": os.getppid(), "blocked": blocked,
        "claim": any("claim" in name for name in open_files),
    })

if __name__ == "__main__":
    from vitlight.data.worker_server import fork_worker_server
    claim = open(sys.argv[1], "w")
    marker.append("seen by forks alone")
    fork_worker_server()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    found = []
    for _ in range(2):
        worker = context.Process(target=work, args=(queue,))
        worker.start()
        found.append(queue.get())
        worker.join()
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    print(json.dumps({"found": found, "server": server, "main": os.getpid()}))
"""


def test_workers_are_forked_from_this_process_and_share_none_of_its_files(tmp_path):
    (tmp_path / "script.py").write_text(CODE)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "claim")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    expected = {
        "forked": 1,
        "parent": said["server"],
        "blocked": ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"],
        "claim": False,
    }
    assert said["found"] == [expected] * 2
    assert said["server"] != said["main"]
    assert done.stderr == ""
