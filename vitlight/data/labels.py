"""The labels of a sample: which part holds them, and how numbers and class names are read from it."""

import hashlib
import json
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitlight.data.faults import FaultError, Kind
from vitlight.errors import InputError, did_you_mean

__all__ = ["MAX_LABEL_BYTES", "ClassNames", "LabelReader", "LabelSource", "read_class_names"]

MAX_LABEL_BYTES = 1 << 16  # of a .cls or .txt part
_MAX_CLASSES = 1 << 24  # class_counts has a row for each number up to the largest label
_SHOWN = 64
_MAX_SUGGESTIONS = 16  # matching a name against 30,000 others takes 0.1 s
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class LabelSource:
    """Where the label of a sample stands; the defaults read what vitlight, webdataset and Hugging Face write.

    Args:
        field: Of the .json part; `meta.label` is field `label` of the object in field `meta`.
        part: `cls`, `json` or `txt`; null: .cls where a sample has it, else .json, else .txt.
        class_file: Maps class names to numbers: a text file whose line i names class i, from 0, or a .json file with a list
            of names or an object {name: number}. null: `classes.txt` beside the shards, where there is one.
        multi: Samples have one or more labels: a list in the .json part; numbers divided by space or comma, or names
            divided by newline or comma, in the .cls or .txt part. A label given twice counts once.
    """

    field: str = "label"
    part: Literal["cls", "json", "txt"] | None = None
    class_file: str | None = None
    multi: bool = False

    def __post_init__(self) -> None:
        if self.part not in (None, "cls", "json", "txt"):
            raise InputError(f"data.labels.part={self.part} is not cls, json, txt or null")
        if not self.field:
            raise InputError("data.labels.field is empty; name the field of the .json part that holds the label")


@dataclass(frozen=True)
class ClassNames:
    """K class names, number i named names[i], as read from `file`; a number may have several names."""

    names: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    """By name; a name that stands for several classes ("crane" in ImageNet) can't be a label."""
    file: str

    def digest(self) -> str:
        """16 hex digits over what names stand for which numbers."""
        return hashlib.blake2b(repr(list(self.numbers.items())).encode(), digest_size=8).hexdigest()


def read_class_names(path: Path, setting: str = "data.labels.class_file") -> ClassNames:
    """The names in a text file, one a line, or in a .json file. Raises InputError where it is neither, or has gaps; where it
    can't be read, the message tells to set `setting`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.rstrip().splitlines()]
    except OSError as error:
        raise InputError(f"{path}: can't read the class names: {error.strerror}; set {setting}") from error
    except ValueError as error:
        raise InputError(f"{path}: can't read the class names: {error}; set {setting}") from error
    if isinstance(content, list) and all(isinstance(name, str) and name for name in content):
        pairs = [(name, i) for i, name in enumerate(content)]
    elif isinstance(content, dict) and all(type(number) is int and number >= 0 for number in content.values()):
        pairs = list(content.items())
    else:
        raise InputError(f"{path}: class names are one a line, none empty, or in .json a list or {{name: number}}")
    by_number: dict[int, str] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    for name, number in pairs:
        by_number.setdefault(number, name)
        numbers[name] = (*numbers.get(name, ()), number)
    gap = next((i for i in range(len(by_number)) if i not in by_number), None)
    if gap is not None or not pairs:
        raise InputError(f"{path}: no name for class {gap or 0}; every number from 0 to the largest has a name")
    return ClassNames(tuple(by_number[i] for i in range(len(by_number))), numbers, str(path))


class LabelReader:
    """Reads the labels of one sample after another. All that is wrong with one raises FaultError.

    num_classes: labels lie below it; None: below the number of class names where there are some.
    """

    def __init__(
        self,
        source: LabelSource = LabelSource(),
        classes: ClassNames | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.source, self.classes, self.num_classes = source, classes, num_classes
        self.num_names = 0
        """How many labels were names so far."""
        self._suggestions: dict[str, str] = {}

    def part(self, extensions: Container[bytes]) -> str:
        """The extension of the part that holds the labels."""
        if self.source.part is not None:
            if self.source.part.encode() in extensions:
                return self.source.part
            raise FaultError(
                Kind.NO_LABEL,
                f"no label: it has no .{self.source.part} part, which data.labels.part={self.source.part} needs",
            )
        for part in ("cls", "json", "txt"):
            if part.encode() in extensions:
                return part
        raise FaultError(
            Kind.NO_LABEL,
            f"no label; a sample has a part .cls, .json with field {self.source.field!r}, or .txt (see data.labels)",
        )

    def read(self, part: str, data: bytes) -> tuple[int, ...]:
        """The labels, at least one, each once, in the order given."""
        values = self._json_values(data) if part == "json" else self._text_values(data, part)
        if not values:
            raise FaultError(
                Kind.NO_LABEL, f"no label: the list in its .{part} part is empty; a sample has at least one"
            )
        return tuple(dict.fromkeys(self._number(value) for value in values))

    def _json_values(self, data: bytes) -> list[Any]:
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FaultError(Kind.BAD_LABEL, f"its .json part can't be read: {error}") from error
        value = _look_up(fields, self.source.field)
        if isinstance(value, list):
            if not self.source.multi:
                raise FaultError(
                    Kind.BAD_LABEL, f"field {self.source.field!r} is a list; set data.labels.multi for several labels"
                )
            return value
        return [value]

    def _text_values(self, data: bytes, part: str) -> list[str]:
        if len(data) > MAX_LABEL_BYTES:
            raise FaultError(Kind.BAD_LABEL, f"its .{part} part has more than {MAX_LABEL_BYTES} bytes; it is no label")
        text = data.decode(errors="backslashreplace").strip()
        if not self.source.multi:
            return [text]
        tokens = re.split(r"[\s,]+", text) if text else []
        if all(_INTEGER.fullmatch(token) for token in tokens):
            return tokens
        names = []
        for line in filter(None, map(str.strip, text.splitlines())):  # a comma may also be part of a name
            is_name = self.classes is not None and line in self.classes.numbers
            names += [line] if is_name else [name for each in line.split(",") if (name := each.strip())]
        return names

    def _number(self, value: Any) -> int:
        if isinstance(value, str) and not _INTEGER.fullmatch(value.strip()):
            return self._class_number(value.strip())
        number = int(value) if isinstance(value, str) else value if type(value) is int else None
        if number is None or not 0 <= number < _MAX_CLASSES:
            kind = Kind.BAD_LABEL if number is None else Kind.LABEL_OUT_OF_RANGE
            text = value if isinstance(value, str) else json.dumps(value)
            raise FaultError(
                kind,
                f"label {text[:_SHOWN]!r} is no class; a label is an integer from 0 to {_MAX_CLASSES - 1} or a class name",
            )
        if self.num_classes is not None and number >= self.num_classes:
            raise FaultError(
                Kind.LABEL_OUT_OF_RANGE, f"label {number} is not in 0 to {self.num_classes - 1}; see num_classes"
            )
        if self.classes is not None and number >= len(self.classes.names):
            raise FaultError(
                Kind.LABEL_OUT_OF_RANGE,
                f"label {number}, but {self.classes.file} names {len(self.classes.names)} classes",
            )
        return number

    def _class_number(self, name: str) -> int:
        if self.classes is None:
            raise FaultError(
                Kind.BAD_LABEL,
                f"label {name[:_SHOWN]!r} is no number, and no file names the classes; set data.labels.class_file",
            )
        found = self.classes.numbers.get(name, ())
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise FaultError(Kind.BAD_LABEL, f"label {name[:_SHOWN]!r} names classes {listed} in {self.classes.file}")
        if not found:
            raise FaultError(
                Kind.UNKNOWN_CLASS,
                f"label {name[:_SHOWN]!r} is none of the {len(self.classes.names)} classes in {self.classes.file}"
                f"{self._suggest(name)}",
            )
        self.num_names += 1
        return self._number(found[0])

    def _suggest(self, name: str) -> str:
        assert self.classes is not None
        if name not in self._suggestions and len(self._suggestions) < _MAX_SUGGESTIONS and len(name) <= _SHOWN:
            self._suggestions[name] = did_you_mean(name, self.classes.numbers)
        return self._suggestions.get(name, "")


def _look_up(fields: Any, name: str) -> Any:
    """The value of a field: of that very name, or along its dots."""
    found, way = fields, [name] if isinstance(fields, dict) and name in fields else name.split(".")
    for step in way:
        if not isinstance(found, dict) or step not in found:
            held = f" (it has {', '.join(list(fields)[:10])})" if isinstance(fields, dict) and fields else ""
            raise FaultError(
                Kind.NO_LABEL,
                f"no label: its .json part has no field {name!r}{held}; set data.labels.field or data.labels.part",
            )
        found = found[step]
    return found
