"""Labels of single images and maps of classes, as files give them."""

import json

import pytest

from vitlight.data.label_files import ClassNumbers, read_class_map, read_label_file
from vitlight.errors import InputError

NAMES = ("n01440764 tench, Tinca tinca", "crane", "n02000000 crane", "crane", "cat", "n01443537 goldfish")
CLASSES = ClassNumbers(6, NAMES, "the model's classes")
KEYS = [f"n0144076{i % 2}/ILSVRC2012_val_{number:08d}" for i, number in enumerate((3, 1, 2))]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_list_goes_by_the_numbers_in_the_images_names_from_one_or_zero(tmp_path):
    path = written(tmp_path, "real.json", [[5], [], [1, 4, 1]])
    assert read_label_file(path, KEYS, CLASSES) == [(1, 4), (5,), ()]
    assert read_label_file(path, ["b/002", "a/000"], CLASSES) == [(1, 4), (5,)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["val_00000001", "val_00000002"], r"a list of 3 entries, but the images' numbers are 1 to 2"),
        (["val_00000002", "val_00000004"], r"a list of 3 entries, but the images' numbers are 2 to 4"),
        (["one/x1", "two/x1"], r"two images end in one number"),
        (["cat/tom"], r"the name of image 'cat/tom' has no number"),
    ],
)
def test_a_list_whose_order_is_open_is_refused(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        read_label_file(written(tmp_path, "real.json", [[0], [1], [2]]), keys, CLASSES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", {"ILSVRC2012_val_00000001.JPEG": "cat", "ILSVRC2012_val_00000002": [0, 5], "other": 1}),
        ("labels.csv", "key,labels\nILSVRC2012_val_00000001.JPEG,cat\nILSVRC2012_val_00000002,0 5\nother,1\n"),
        ("labels.json", {KEYS[1]: 4, KEYS[2]: ["n01440764", "n01443537"], "other": 1}),
    ],
)
def test_labels_by_whole_key_or_by_its_last_part(tmp_path, name, content):
    assert read_label_file(written(tmp_path, name, content), KEYS, CLASSES) == [None, (4,), (0, 5)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", {"x": 1}, r"labels for 'x', but for no image such as 'n01440760/ILSVRC"),
        ("labels.json", {KEYS[0]: 6}, r"of image 'n0.*': class 6 is not in 0 to 5"),
        ("labels.json", {KEYS[0]: "crane"}, r"'crane' is the name of none of the model's classes"),
        ("labels.json", {KEYS[0]: "goldfish"}, r"'goldfish' is the name of none"),
        ("labels.json", {KEYS[0]: 1.5}, r"1\.5 is no class"),
        ("labels.json", "{", r"can't read the labels"),
        ("labels.json", "3", r"labels are a list in the images' order, or an object"),
        ("labels.csv", "image,label\n", r"first line is 'image,label'"),
        ("labels.csv", "key,label\na,1\na,2\n", r"line 3: key 'a' comes twice"),
        ("labels.csv", "key,label\na,1,2\n", r"line 2 has 3 values"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_label_file(written(tmp_path, name, content), KEYS, CLASSES)


def test_two_images_of_one_name_need_their_whole_keys(tmp_path):
    with pytest.raises(InputError, match=r"two images are named 'x'; give their whole keys, such as 'a/x'"):
        read_label_file(written(tmp_path, "labels.json", {"x": 1}), ["a/x", "b/x"], CLASSES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("map.json", {"air": ["cat", 5], "1": None, "chair": []}),
        ("map.json", [["cat", 5], None, []]),
        ("map.txt", "4 n01443537\n\n\n"),
        ("map.txt", "cat, 5\n"),
    ],
)
def test_a_map_of_classes_in_each_form(tmp_path, name, content):
    own = ClassNumbers(100, ("air", "bench", "chair"), "the set's classes")
    mapped = read_class_map(written(tmp_path, name, content), own, CLASSES)
    assert mapped[0] == (4, 5)
    assert not mapped.get(1) and not mapped.get(2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sofa": 1}, r"'sofa' is the name of none of the set's classes"),
        ({"air": 7}, r"class 7 is not in 0 to 5"),
        ({"air": 1, "0": 2}, r"own class '0' comes twice"),
        ({}, r"a map of classes is"),
    ],
)
def test_what_is_wrong_with_a_map_is_said(tmp_path, content, message):
    own = ClassNumbers(100, ("air", "bench", "chair"), "the set's classes")
    with pytest.raises(InputError, match=message):
        read_class_map(written(tmp_path, "map.json", content), own, CLASSES)


def test_the_classes_of_imagenet_v2_are_numbers_in_the_order_of_text(tmp_path):
    """Its folders are 0 to 999, packed in sorted order: own class 2 is called 10."""
    path = written(tmp_path, "classes.txt", "0\n1\n10\n2\n")
    own, model = ClassNumbers(1 << 24, ("0", "1", "10", "2"), "own"), ClassNumbers(11, None, "the model's classes")
    assert read_class_map(path, own, model) == {0: (0,), 1: (1,), 2: (10,), 3: (2,)}


TWELVE = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...: folders, numbered in the order of text
DIGITS = ClassNumbers(12, TWELVE, "the model's classes")


def test_the_sets_own_list_of_digits_is_one_of_names_to_a_model_with_such_names(tmp_path):
    own = ClassNumbers(1 << 24, ("1", "10", "2", "9"), "own")
    wanted = {0: (1,), 1: (2,), 2: (4,), 3: (11,)}
    assert read_class_map(written(tmp_path, "classes.txt", "1\n10\n2\n9\n"), own, DIGITS) == wanted
    assert read_class_map(written(tmp_path, "classes.json", ["1", "10", "2", "9"]), own, DIGITS) == wanted
    assert read_class_map(written(tmp_path, "map.json", [1, 10, 2, 9]), own, DIGITS) == {
        0: (1,),
        1: (10,),
        2: (2,),
        3: (9,),
    }
    padded = ClassNumbers(3, ("001", "002", "003"), "the model's classes")
    own = ClassNumbers(1 << 24, ("001", "003"), "own")
    assert read_class_map(written(tmp_path, "classes.txt", "001\n003\n"), own, padded) == {0: (0,), 1: (2,)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "map.txt",
            "0\n1\n2\n3\n",
            r"'2' is the number 2, and the name of number 4, of the model's classes; a \.json list",
        ),
        ("map.json", ["1", "10"], r"'10' is the number 10, and the name of number 2, of the model's classes"),
        ("map.json", {"2": 0}, r"'2' is the number 2, and the name of number 1, of own"),
    ],
)
def test_digits_that_are_one_class_by_number_and_another_by_name_are_refused(tmp_path, name, content, message):
    own = ClassNumbers(1 << 24, ("1", "2", "3"), "own")
    with pytest.raises(InputError, match=message):
        read_class_map(written(tmp_path, name, content), own, DIGITS)


def test_labels_in_digits_are_numbers_where_no_other_class_is_called_so(tmp_path):
    path = written(tmp_path, "labels.csv", "key,labels\nb,0 1\n")
    assert read_label_file(path, ["b"], DIGITS) == [(0, 1)]
    assert read_label_file(written(tmp_path, "labels.json", {"b": [10, 2]}), ["b"], DIGITS) == [(10, 2)]
    path = written(tmp_path, "labels.csv", "key,labels\nb,11\n")
    with pytest.raises(InputError, match=r"of image 'b': '11' is the number 11, and the name of number 3"):
        read_label_file(path, ["b"], DIGITS)


@pytest.mark.parametrize(
    "read", [lambda path: read_class_map(path, CLASSES, CLASSES), lambda path: read_label_file(path, KEYS, CLASSES)]
)
def test_what_is_not_utf_8_is_said(tmp_path, read):
    path = tmp_path / "saved_by_a_spreadsheet.csv"
    path.write_bytes("key,label\nILSVRC2012_val_00000001,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"spreadsheet\.csv: can't read the .*: 'utf-8' codec .*; save it as UTF-8"):
        read(path)


def test_a_name_beyond_the_models_classes_is_none_of_them(tmp_path):
    """A classes.txt may list more than data.num_classes; no image that is trained on has these."""
    path = written(tmp_path, "labels.csv", "key,label\nILSVRC2012_val_00000001,eel\n")
    with pytest.raises(InputError, match=r"'eel' is the name of none of the model's classes"):
        read_label_file(path, KEYS, ClassNumbers(2, ("cat", "dog", "eel"), "the model's classes"))
