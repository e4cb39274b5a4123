import json
import subprocess
import sys

import pytest

from vitlight import __version__
from vitlight.cli import main
from vitlight.models import list_archs


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "models", "data", "sweep", "report"):
        assert f"    {command} " in printed


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vitlight {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "unknown command 'fitt'; did you mean fit"),
        (["report", "/no/such/runs"], "/no/such/runs"),
        (["data", "index", "/no/such/shards"], "/no/such/shards"),
        (["sweep", "run", "/no/such.yaml"], "/no/such.yaml"),
        (["fit", "--model.arch=vit_s16"], "data"),
        (["fit", "--model.arch=vit_s16", "--data.trian=x"], "data.train"),
        (
            ["validate", "--ckpt_path=/no/such.ckpt", "--model.arch=vit_s16", "--data.train=x", "--data.num_classes=2"],
            "/no/such",
        ),
        (["models", "--image-size", "0"], "0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, capsys):
    assert main(args) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("vitlight: error: ")
    assert message in lines[0]
    assert captured.out == ""


def test_models_as_json(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["arch"] for row in rows] == list_archs()
    by_arch = {row["arch"]: row for row in rows}
    assert set(by_arch["vit_b16"]) >= {"arch", "family", "params", "forward_macs", "image_size"}
    assert by_arch["vit_b16"]["params"] == 86_567_656
    assert 17.5e9 < by_arch["vit_b16"]["forward_macs"] < 17.6e9


def test_models_at_another_resolution_and_of_one_family(capsys):
    assert main(["models", "--json", "--image-size", "384", "--family", "vit"]) == 0
    by_arch = {row["arch"]: row for row in json.loads(capsys.readouterr().out)}
    assert {row["family"] for row in by_arch.values()} == {"vit"}
    # timm prints 55.54 GMACs for ViT-B/16 at 384 with attention counted.
    assert by_arch["vit_b16"]["forward_macs"] == pytest.approx(55.5e9, rel=0.01)
    assert by_arch["vit_b16"]["image_size"] == 384


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m vitlight models --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["[", "0"]
    assert "Traceback" not in done.stderr


def test_debug_shows_where_an_error_arose(capsys, monkeypatch):
    monkeypatch.setenv("VITLIGHT_DEBUG", "1")
    assert main(["data", "index", "/no/such/shards"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_warning_of_vitlight_is_one_line_and_one_of_others_says_where_it_comes_from():
    program = """
import warnings, vitlight.cli, vitlight.errors
def handler(args):
    warnings.warn_explicit("2 rows are left out", UserWarning, vitlight.errors.__file__, 7)
    warnings.warn_explicit("old", DeprecationWarning, "/elsewhere/other.py", 3)
    return 0
vitlight.cli._dispatch = handler
warnings.simplefilter("always")
before = warnings.formatwarning
assert vitlight.cli.main([]) == 0
assert warnings.formatwarning is before
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stderr == "vitlight: warning: 2 rows are left out\n/elsewhere/other.py:3: DeprecationWarning: old\n"
