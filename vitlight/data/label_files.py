"""Files that say which classes of the model are right: of single images, and of the classes of another set.

Classes are given as numbers of the model's classes, or by name where those have names.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitlight.errors import InputError, did_you_mean

__all__ = ["ClassNumbers", "Labels", "read_class_map", "read_label_file"]

Labels = tuple[int, ...]
ToNumber = Callable[[Any], int]

_WORDNET_ID = re.compile(r"n\d{8}\b")
_INTEGER = re.compile(r"[0-9]+")
_LAST_NUMBER = re.compile(r"(\d+)\D*$")
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)$", re.IGNORECASE)
_SHOWN = 64


class ClassNumbers:
    """Class numbers out of numbers, digits and names: below `num_classes`, and named as in `names`, number i names[i]; of a
    name that begins with a WordNet id ("n01440764 tench, Tinca tinca") the id is a name, too.

    Folders 0 to 11 are numbered in the order of text, so that class 2 is called 10: digits that are the number of one class
    and the name of another are refused. what: of which classes, for messages.
    """

    def __init__(self, num_classes: int, names: Sequence[str] | None, what: str) -> None:
        self.num_classes, self.names, self.what = num_classes, tuple(names or ())[:num_classes], what
        self._named: dict[str, set[int]] = {}
        for number, name in enumerate(self.names):
            for alias in _aliases(name):
                self._named.setdefault(alias, set()).add(number)
        self._numbers = {alias: min(numbers) for alias, numbers in self._named.items() if len(numbers) == 1}

    def knows(self, name: str) -> bool:
        return name in self._numbers

    def named(self, name: str) -> int:
        """The number of the class whose name `knows` knows, digits or not."""
        return self._numbers[name]

    def __call__(self, value: Any) -> int:
        """Raises ValueError, which says what is wrong with the value."""
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, str) and not _INTEGER.fullmatch(text):
            if text in self._numbers:
                return self._numbers[text]
            hint = did_you_mean(text, self._numbers) if self._numbers else ""
            raise ValueError(f"{text[:_SHOWN]!r} is the name of none of {self.what}{hint}")
        if isinstance(text, bool) or not isinstance(text, (int, str)):
            raise ValueError(f"{json.dumps(value)[:_SHOWN]} is no class; a class is a number or a name")
        number = int(text)
        if not 0 <= number < self.num_classes:
            raise ValueError(f"class {number} is not in 0 to {self.num_classes - 1}, the numbers of {self.what}")
        if isinstance(text, str) and (others := self._named.get(text, set()) - {number}):
            raise ValueError(
                f"{text!r} is the number {number}, and the name of number {min(others)}, of {self.what}; a .json list of "
                "numbers leaves no doubt"
            )
        return number

    def several(self, value: Any) -> Labels:
        """Of a list, of one value, or of text with numbers or names divided by space or comma; None is no class."""
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(dict.fromkeys(self(item) for item in value))
        if isinstance(value, str):
            text = value.strip()
            tokens = [text] if self.knows(text) else [token for token in re.split(r"[\s,]+", text) if token]
            return tuple(dict.fromkeys(self(token) for token in tokens))
        return (self(value),)


def _aliases(name: str) -> set[str]:
    found = _WORDNET_ID.match(name)
    return {name} if found is None else {name, found[0]}


def read_label_file(path: Path, keys: Sequence[str], classes: ClassNumbers) -> list[Labels | None]:
    """The labels of the images `keys`, in their order: () where the file says that an image has none, None where it has
    no line for it.

    A .json list has an entry for each image of the whole set, in the order of the numbers that the images' names end in
    (ReaL's real.json: ILSVRC2012_val_00000001 to 00050000). A .json object {key: label or labels}, or a .csv file with
    the columns key and label (or labels), names each image by its key, or by the last part of that; an extension of
    an image file is left out. Raises InputError.
    """
    content = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path, "the labels")
    if isinstance(content, list):
        places = _places_by_number(path, keys, len(content))
        return [_labels(path, content[place], keys[i], classes) for i, place in enumerate(places)]
    if not isinstance(content, dict):
        raise InputError(f"{path}: labels are a list in the images' order, or an object {{key: label or labels}}")
    found = _find_by_key(path, keys, {_IMAGE_SUFFIX.sub("", str(key)): value for key, value in content.items()})
    return [None if key is None else _labels(path, value, key, classes) for key, value in found]


def _labels(path: Path, value: Any, key: str, classes: ClassNumbers) -> Labels:
    try:
        return classes.several(value)
    except ValueError as error:
        raise InputError(f"{path}: the labels of image {key!r}: {error}") from error


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: can't read {what}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: can't read {what}: {error}") from error


def _read_csv(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise InputError(f"{path}: can't read the labels: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't read the labels: {error}; save it as UTF-8, key,label in each line") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if header not in (["key", "label"], ["key", "labels"]):
        raise InputError(f"{path}: its first line is {','.join(header)[:_SHOWN]!r}, not `key,label` or `key,labels`")
    content: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise InputError(f"{path}: line {number} has {len(row)} values, not a key and its labels")
        if row[0] in content:
            raise InputError(f"{path}: line {number}: key {row[0]!r} comes twice")
        content[row[0]] = row[1]
    return content


def _places_by_number(path: Path, keys: Sequence[str], length: int) -> list[int]:
    """The entry of a list of `length` for each image."""
    numbers = []
    for key in keys:
        found = _LAST_NUMBER.search(_last_part(key))
        if found is None:
            raise InputError(
                f"{path} is a list in the images' order, but the name of image {key!r} has no number; give {{key: labels}}"
            )
        numbers.append(int(found[1]))
    if len(set(numbers)) < len(numbers):
        raise InputError(
            f"{path} is a list in the images' order, but names of two images end in one number; give {{key: labels}}"
        )
    first = 1 if max(numbers) == length else 0
    if not (min(numbers) >= first and max(numbers) < length + first) or (min(numbers) > 0 and first == 0):
        raise InputError(
            f"{path} is a list of {length} entries, but the images' numbers are {min(numbers)} to {max(numbers)}: it needs "
            f"an entry for each, from image 0 or 1 on; give {{key: labels}}"
        )
    return [number - first for number in numbers]


def _last_part(key: str) -> str:
    return key.rpartition("/")[2]


def _find_by_key(path: Path, keys: Sequence[str], content: Mapping[str, Any]) -> list[tuple[str | None, Any]]:
    """(key of the file, its value) for each image; (None, None) where it has none."""
    named = list(keys)
    if not any(key in content for key in keys):
        named = [_last_part(key) for key in keys]
        if not any(key in content for key in named):
            raise InputError(
                f"{path} has labels for {next(iter(content), 'nothing')!r}, but for no image such as {keys[0]!r}"
            )
        repeated = [key for key, count in Counter(named).items() if count > 1 and key in content]
        if repeated:
            raise InputError(
                f"{path}: two images are named {repeated[0]!r}; give their whole keys, such as {keys[0]!r}"
            )
    return [(key, content[key]) if key in content else (None, None) for key in named]


def read_class_map(path: Path, own: ClassNumbers, model: ClassNumbers) -> dict[int, Labels]:
    """The model's classes of each class of a set; () where the model has none for it.

    A .json object {own class: model's class or classes}; or, for own classes 0, 1, 2, ..., a .json list or the lines of
    a text file, each with the model's class or classes. Own classes that an object leaves out have none. A list that is
    the set's own names, all of them known to the model, is one of names, digits or not. Raises InputError.
    """
    if path.suffix.lower() == ".json":
        content = _read_json(path, "the map of classes")
    else:
        try:
            content = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
        except OSError as error:
            raise InputError(f"{path}: can't read the map of classes: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: can't read the map of classes: {error}; save it as UTF-8") from error
    if not isinstance(content, (list, dict)) or not content:
        raise InputError(
            f"{path}: a map of classes is {{own class: model's class or classes}}, or a list of the latter"
        )
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    are_names = content == list(own.names) and all(model.knows(name) for name in own.names)
    mapped: dict[int, Labels] = {}
    for name, value in pairs:
        try:
            number, labels = own(name), (model.named(value),) if are_names else model.several(value)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if number in mapped:
            raise InputError(f"{path}: own class {name!r} comes twice")
        mapped[number] = labels
    return mapped
