"""A helper that a spare process becomes is like one that is started."""

import json
import subprocess
import sys

CODE = """
import json, os, subprocess, sys, time
from pathlib import Path
from vitlight.training.spare import fork_spare, start_helper

folder = Path(sys.argv[1])
claim = open(folder / "claim", "w")
helper_code = '''
import json, os, signal, sys
paths = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
names = [os.path.basename(os.readlink(path)) for path in paths if os.path.exists(path)]
print(json.dumps({
    "argv": sys.argv[1:], "asked": sys.stdin.readline(), "session": os.getsid(0) == os.getpid(),
    "files": sorted(name.partition(":")[0] for name in names),
}), flush=True)
print("an error", file=sys.stderr)
sys.stdin.readline()
'''
if sys.argv[2] == "forked":
    fork_spare()
elif sys.argv[2] == "killed":
    fork_spare()
    import vitlight.training.spare as spare
    os.kill(spare._spare[1], 9)
    os.waitpid(spare._spare[1], 0)
first = start_helper("tests.sweep.cell", helper_code, folder / "log")
first.stdin.write(b"a question\\n")
answer = json.loads(first.stdout.readline())
try:
    first.wait(0.05)
except subprocess.TimeoutExpired:
    answer["waits"] = True
first.stdin.close()
code = first.wait()
second = start_helper("tests.sweep.cell", "print(7)", folder / "log")
said = second.stdout.read().decode()
second.stdin.close()
print(json.dumps({**answer, "code": code, "again": first.wait(), "second": [said, second.wait()]}))
"""


def test_a_spare_becomes_what_a_started_helper_is(tmp_path, request):
    said = {}
    for kind in ("started", "forked", "killed"):
        (tmp_path / kind).mkdir()
        command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", CODE, str(tmp_path / kind), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=request.config.rootpath)
        assert (done.returncode, done.stderr) == (0, "")
        said[kind] = json.loads(done.stdout)
        assert (tmp_path / kind / "log").read_text() == "an error\n"
    expected = {"asked": "a question\n", "session": True, "waits": True, "code": 0, "again": 0, "second": ["7\n", 0]}
    assert {name: said["started"][name] for name in expected} == expected
    assert said["started"]["files"] == ["log", "pipe", "pipe"]
    assert said["started"] == said["forked"] == said["killed"]
