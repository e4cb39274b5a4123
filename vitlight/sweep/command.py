"""The `command` of a sweep file: W&B's macros, expanded as `wandb agent` expands them.

The `${args...}` macros give the same words as wandb 0.31.0 for parameters that are not nested (a test compares them).
Parameters come sorted by name, as W&B's grid search makes them (github.com/wandb/sweeps, params.py, `from_config`).
It is stricter where W&B would start a run that is not the one written down: an unknown macro is refused (W&B drops
it), a macro inside a longer word is refused (W&B passes it on as text), and an unset `${envvar:NAME}` is refused (W&B
puts NAME).
A nested group of parameters becomes dotted names here, where W&B passes the group as one `--group={...}`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from vitlight.errors import InputError, did_you_mean

__all__ = ["DEFAULT_COMMAND", "expand_command", "vitlight_arguments"]

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
MACRO = re.compile(r"\$\{[^}]*\}")
# W&B's ${args_json_file} names a file that its agent writes; a cell here is its arguments and nothing else.
PARAMETER_MACROS = (
    "args",
    "args_no_hyphens",
    "args_no_equals",
    "args_no_boolean_flags",
    "args_json",
    "args_append_hydra",
    "args_override_hydra",
)


def expand_command(command: Sequence[str], program: str | None, parameters: Mapping[str, object]) -> list[str]:
    """The words of one cell's command line, every macro replaced.

    InputError: an unknown macro, `${program}` without a program, an unset environment variable, no parameter macro.
    """
    if not any(word == f"${{{macro}}}" for macro in PARAMETER_MACROS for word in command):
        raise InputError("command has no ${args}, so its parameters would reach no run; add ${args} as the last word")
    macros = {"env": ["/usr/bin/env"], "interpreter": ["python"], **_parameter_macros(parameters)}
    if program is not None:
        macros["program"] = [program]
    words: list[str] = []
    for word in command:
        word = ENVIRONMENT_VARIABLE.sub(_environment_variable, word)
        if word.startswith("${") and word.endswith("}"):
            words += _macro_words(word[2:-1], macros)
        elif embedded := MACRO.search(word):
            raise InputError(f"command has {embedded.group()} inside {word!r}; a macro must be a word of its own")
        else:
            words.append(word)
    return words


def vitlight_arguments(words: Sequence[str]) -> tuple[str, ...]:
    """What follows `vitlight` in a command line: `fit --config=...`.

    `vitlight`, a path to it and `python -m vitlight` are understood, with or without `/usr/bin/env` before them.
    InputError: the command runs anything else.
    """
    rest = list(words)
    if rest and PurePath(rest[0]).name == "env":
        rest = rest[1:]
    if len(rest) > 1 and PurePath(rest[0]).name.startswith("python") and rest[1] == "-m":
        rest = rest[2:]
    if len(rest) < 2 or PurePath(rest[0]).name != "vitlight" or rest[1] != "fit":
        raise InputError(
            f"command runs {' '.join(rest[:2]) or 'nothing'!r}, but a sweep's cells are runs of `vitlight fit`; "
            'write command: ["${env}", vitlight, fit, --config=FILE, "${args}"]'
        )
    return tuple(rest[1:])


def _parameter_macros(parameters: Mapping[str, object]) -> dict[str, list[str]]:
    pairs = [f"{name}={value}" for name, value in parameters.items()]
    no_boolean_flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in parameters.items()
        if value is not False
    ]
    return {
        "args": [f"--{pair}" for pair in pairs],
        "args_no_hyphens": pairs,
        "args_no_equals": [word for name, value in parameters.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": no_boolean_flags,
        "args_json": [json.dumps(dict(parameters))],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
    }


def _macro_words(name: str, macros: Mapping[str, list[str]]) -> list[str]:
    if name in macros:
        return macros[name]
    if name == "program":
        raise InputError("command has ${program}, but the file has no program; add program: vitlight")
    if name == "args_json_file":
        raise InputError("command has ${args_json_file}, which only W&B's agent writes; use ${args}")
    raise InputError(
        f"command has ${{{name}}}, which is no macro{did_you_mean(name, macros)}; known: {', '.join(macros)}"
    )


def _environment_variable(match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in os.environ:
        raise InputError(f"command has {match.group()}, but the environment has no {name}; export it")
    return os.environ[name]
