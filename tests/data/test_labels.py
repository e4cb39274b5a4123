import json
import re

import pytest

from vitlight.data.faults import FaultError, Kind
from vitlight.data.labels import LabelReader, LabelSource, read_class_names
from vitlight.errors import InputError


def classes_of(folder, text, name="names.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return read_class_names(folder / name)


@pytest.mark.parametrize(
    ("source", "part", "data", "labels"),
    [
        ({}, "cls", b"7\n", (7,)),
        ({}, "cls", b" dog ", (1,)),
        ({}, "cls", b"tench, Tinca tinca", (2,)),
        ({}, "txt", b"cat", (0,)),
        ({}, "json", b'{"label": 3}', (3,)),
        ({}, "json", b'{"label": "3"}', (3,)),
        ({}, "json", b'{"label": "dog"}', (1,)),
        ({"field": "meta.class"}, "json", b'{"meta": {"class": 4}}', (4,)),
        ({"field": "meta.class"}, "json", b'{"meta.class": 5, "meta": {"class": 4}}', (5,)),
        ({"multi": True}, "json", b'{"label": [2, "dog", "7", 2]}', (2, 1, 7)),
        ({"multi": True}, "json", b'{"label": 2}', (2,)),
        ({"multi": True}, "cls", b"3 1,4\n5", (3, 1, 4, 5)),
        ({"multi": True}, "cls", b"dog, cat", (1, 0)),
        ({"multi": True}, "txt", b"tench, Tinca tinca\ncat\n", (2, 0)),
    ],
)
def test_numbers_and_names(tmp_path, source, part, data, labels):
    classes = classes_of(tmp_path, "cat\ndog\ntench, Tinca tinca\n3\n4\n5\n6\n7\n")
    assert LabelReader(LabelSource(**source), classes).read(part, data) == labels


@pytest.mark.parametrize(
    ("source", "part", "data", "kind", "message"),
    [
        ({}, "cls", b"dgo", Kind.UNKNOWN_CLASS, "'dgo' is none of the 2 classes in .*names.txt; did you mean dog?"),
        ({}, "cls", b"2", Kind.LABEL_OUT_OF_RANGE, "label 2, but .*names.txt names 2 classes"),
        ({}, "cls", b"1 2", Kind.UNKNOWN_CLASS, "label '1 2' is none of"),
        ({}, "cls", b"1" * 70_000, Kind.BAD_LABEL, "its .cls part has more than 65536 bytes"),
        ({}, "json", b'{"label": [1]}', Kind.BAD_LABEL, "field 'label' is a list; set data.labels.multi"),
        ({}, "json", b'{"label": null}', Kind.BAD_LABEL, "label 'null' is no class"),
        ({}, "json", b"[1]", Kind.NO_LABEL, "its .json part has no field 'label'"),
        ({}, "json", b'{"labels": 1, "id": 2}', Kind.NO_LABEL, r"no field 'label' \(it has labels, id\)"),
        ({"field": "a.b"}, "json", b'{"a": 1}', Kind.NO_LABEL, r"no field 'a.b' \(it has a\); set data.labels.field"),
        ({"multi": True}, "json", b'{"label": []}', Kind.NO_LABEL, "the list in its .json part is empty"),
        ({"multi": True}, "cls", b" \n", Kind.NO_LABEL, "the list in its .cls part is empty"),
        ({"multi": True}, "json", b'{"label": [1, [0]]}', Kind.BAD_LABEL, r"label '\[0\]' is no class"),
    ],
)
def test_what_is_no_label(tmp_path, source, part, data, kind, message):
    with pytest.raises(FaultError) as caught:
        LabelReader(LabelSource(**source), classes_of(tmp_path, "cat\ndog\n")).read(part, data)
    assert caught.value.kind == kind
    assert re.search(message, caught.value.detail)


def test_the_part_is_chosen_by_what_a_sample_has():
    reader = LabelReader()
    assert reader.part({b"txt", b"json", b"cls"}) == "cls"
    assert reader.part({b"txt", b"json"}) == "json"
    assert reader.part({b"txt", b"jpg"}) == "txt"
    assert LabelReader(LabelSource(part="txt")).part({b"txt", b"json", b"cls"}) == "txt"
    with pytest.raises(FaultError, match=r"no \.txt part, which data.labels.part=txt needs"):
        LabelReader(LabelSource(part="txt")).part({b"cls"})


def test_labels_lie_below_num_classes():
    reader = LabelReader(num_classes=10)
    assert reader.read("cls", b"9") == (9,)
    with pytest.raises(FaultError, match="label 10 is not in 0 to 9"):
        reader.read("cls", b"10")


def test_class_files(tmp_path):
    assert classes_of(tmp_path, "a\r\nb c\n\n").names == ("a", "b c")
    assert classes_of(tmp_path, json.dumps(["x", "y"]), "names.json").names == ("x", "y")
    synonyms = classes_of(tmp_path, json.dumps({"owl": 1, "cat": 0, "puss": 0}), "map.json")
    assert synonyms.names == ("cat", "owl")
    assert LabelReader(classes=synonyms).read("cls", b"puss") == (0,)


def test_a_name_of_two_classes_names_neither(tmp_path):
    reader = LabelReader(classes=classes_of(tmp_path, "crane\ncat\ncrane\n"))
    assert reader.read("cls", b"2") == (2,)
    with pytest.raises(FaultError, match="label 'crane' names classes 0, 2 in"):
        reader.read("cls", b"crane")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a\n\nb\n", "class names are one a line, none empty"),
        ("c.txt", "", "no name for class 0"),
        ("c.json", '{"a": 0, "b": 2}', "no name for class 1"),
        ("c.json", '{"a": "0"}', "class names are one a line"),
        ("c.json", "[", "can't read the class names"),
    ],
)
def test_what_is_no_class_file(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        classes_of(tmp_path, text, name)


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(InputError, match=r"data.labels.part=png is not cls, json, txt or null"):
        LabelSource(part="png")
    with pytest.raises(InputError, match=r"none.txt: can't read the class names: No such file"):
        read_class_names(tmp_path / "none.txt")
