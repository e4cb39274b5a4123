"""Fetching weights: a server on this machine, a port that nobody listens on, filesystems of fsspec's."""

import contextlib
import http.server
import importlib.util
import socket
import threading
import time
from pathlib import Path

import fsspec
import pytest

from tests.requirements import require
from vitlight.errors import InputError
from vitlight.models import hub
from vitlight.models.hub import fetch_weights, is_remote

CONTENT = bytes(range(256)) * 40
FILES = ("/w.npz", "/lab/tiny/resolve/main/pytorch_model.bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
needs_hub = pytest.mark.usefixtures("huggingface_hub")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def refused():
    """The address of a port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Files by path, one that ends early, one that stalls; and what a hub says of the repository lab/tiny."""

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path in ("/short.npz", "/stalled.npz"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:100])
            if path == "/stalled.npz":
                self.server.stop.wait(20)
        elif path in FILES:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.send_header("ETag", '"a1b2"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(CONTENT)
        else:
            self.send_response(404)
            if "/resolve/" in path:
                known = path.startswith("/lab/tiny/")
                revision = path.startswith("/lab/tiny/resolve/main/")
                code = "EntryNotFound" if revision else "RevisionNotFound" if known else "RepoNotFound"
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.requests, serving.stop = [], threading.Event()
        serving.url = f"http://127.0.0.1:{serving.server_port}"
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.stop.set()
        serving.shutdown()
        thread.join()


def says(source: str) -> str:
    """The one line that fetching says, within five seconds."""
    began = time.monotonic()
    with pytest.raises(InputError) as raised:
        fetch_weights(source)
    assert time.monotonic() - began < 5
    assert "\n" not in str(raised.value)
    return str(raised.value)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir()]


def test_a_url_is_fetched_once(server, cache, capsys):
    path = fetch_weights(f"{server.url}/w.npz")
    assert path.read_bytes() == CONTENT
    assert (path.parent, path.suffix) == (cache, ".npz")
    assert fetch_weights(f"{server.url}/w.npz") == path
    assert server.requests == ["GET /w.npz"]
    assert leftovers(cache) == [path.name]
    assert capsys.readouterr().err.splitlines() == [f"fetching {server.url}/w.npz (0.0 MB)"]


def test_urls_that_end_alike_are_kept_apart(server):
    assert fetch_weights(f"{server.url}/w.npz") != fetch_weights(f"{server.url}/w.npz?version=2")


def test_a_failure_names_source_reason_and_way_out(server, cache, refused):
    way_out = "fetch it on another machine and pass the file's path"
    assert says(f"{server.url}/no.npz") == f"{server.url}/no.npz: can't be fetched: HTTP 404 Not Found; {way_out}"
    assert says(f"{refused}/w.npz") == f"{refused}/w.npz: can't be fetched: Connection refused; {way_out}"
    assert "can't be fetched: " in says(f"{server.url}/short.npz")
    assert leftovers(cache) == []


def test_secrets_in_a_url_are_not_said(refused):
    assert says(refused.replace("//", "//me:word@") + "/w.npz?key=abc").startswith(
        f"{refused}/w.npz: can't be fetched: "
    )


def test_a_stalled_server_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(hub, "_STALL_SECONDS", 0.3)
    assert "can't be fetched: no byte came for 0.3 s" in says(f"{server.url}/stalled.npz")
    assert leftovers(cache) == []


def test_filesystems_of_fsspec(cache):
    with fsspec.open("memory://folder/w.safetensors", "wb") as file:
        file.write(CONTENT)
    assert fetch_weights("memory://folder/w.safetensors").read_bytes() == CONTENT
    assert "memory://folder/no.npz: can't be fetched: no such file; " in says("memory://folder/no.npz")
    assert "nosuch://x/w.npz" in says("nosuch://x/w.npz")
    require(importlib.util.find_spec("gcsfs") is None, "no gcsfs")
    assert says("gs://bucket/w.npz") == "gs://bucket/w.npz: this needs another package; pip install gcsfs"


def test_a_stalled_filesystem_is_given_up(cache, monkeypatch):
    stop = threading.Event()

    class Stalled:
        def read(self, _):
            stop.wait(20)
            return b""

    monkeypatch.setattr(hub, "_STALL_SECONDS", 0.3)
    monkeypatch.setattr(fsspec, "open", lambda *_: contextlib.nullcontext(Stalled()))
    assert "can't be fetched: no byte came for 0.3 s" in says("memory://folder/stalled.npz")
    stop.set()
    assert leftovers(cache) == []


@pytest.mark.parametrize("source", ["weights", "hf-hub:name", "hf-hub:a/b/", "https://host", "https://host/"])
def test_a_source_that_names_nothing(source):
    assert source in says(source)


def test_what_is_remote():
    remote = ["hf-hub:a/b", "https://host/w.npz", "s3://bucket/w.pt", "w.npz", "/folder/w.npz", "C:/w.npz"]
    assert [is_remote(source) for source in remote] == [True, True, True, False, False, False]


def test_a_cache_that_cant_be_written(tmp_path, monkeypatch, server):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "file"))
    assert "set VITLIGHT_CACHE" in says(f"{server.url}/w.npz")


@pytest.fixture
def huggingface_hub(tmp_path, monkeypatch):
    require(importlib.util.find_spec("huggingface_hub") is not None, "huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@needs_hub
def test_a_name_on_the_hub(server, monkeypatch, refused):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    path = fetch_weights("hf-hub:lab/tiny")  # it has no model.safetensors
    assert (path.name, path.read_bytes()) == ("pytorch_model.bin", CONTENT)
    monkeypatch.setenv("HF_ENDPOINT", refused)
    assert fetch_weights("hf-hub:lab/tiny") == path
    assert fetch_weights("hf-hub:lab/tiny/pytorch_model.bin") == path
    assert fetch_weights(f"hf-hub:lab/tiny@{COMMIT}") == path


@needs_hub
def test_what_the_hub_lacks(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert "the repository has no other.bin; " in says("hf-hub:lab/tiny/other.bin")
    assert "the repository has no revision v9; " in says("hf-hub:lab/tiny@v9")
    assert f"{server.url} has no such repository" in says("hf-hub:lab/none")


@needs_hub
def test_no_hub_at_hand(monkeypatch, refused):
    monkeypatch.setenv("HF_ENDPOINT", refused)
    reason = f"no connection to {refused} (Connection refused)"
    way_out = "fetch it on another machine and pass the file's path"
    assert says("hf-hub:lab/tiny") == f"hf-hub:lab/tiny: can't be fetched: {reason}; {way_out}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "it is not in the cache, and HF_HUB_OFFLINE is set" in says("hf-hub:lab/tiny")


def test_the_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert says("hf-hub:lab/tiny").endswith("pip install 'vitlight[hub]'")
