"""Evaluation sets: which images are judged, and which classes are right for each."""

import json

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.tars import image_bytes, write_tar
from vitlight.data.datamodule import ShardedImages
from vitlight.data.evaluation_sets import EvaluationSet, as_evaluation_sets, open_evaluation_sets
from vitlight.data.labels import LabelSource
from vitlight.data.training_set import IndexOptions
from vitlight.errors import InputError
from vitlight.training.experiment import ExperimentCLI

LABELS = (2, 0, 1, 2, 3)  # of images 1 to 5


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for first, last in ((0, 3), (3, 5)):
        members = [
            member
            for i in range(first, last)
            for member in (
                (f"c{LABELS[i]}/val_{i + 1}.png", image_bytes(i)),
                (f"c{LABELS[i]}/val_{i + 1}.cls", b"%d" % LABELS[i]),
            )
        ]
        write_tar(folder / f"{first}.tar", members)
    return folder


def opened(shards, num_classes=4, names=None, **settings):
    sets, notes = open_evaluation_sets(
        {"one": EvaluationSet(str(shards), **settings)}, num_classes, names, IndexOptions()
    )
    return sets[0], notes


def right(found):
    places, classes = found.targets_of(0, len(found.rows))
    return {row: set(classes[places == place].tolist()) for place, row in enumerate(found.rows.tolist())}


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_the_shards_own_labels_are_the_models_classes(shards):
    found, notes = opened(shards)
    assert right(found) == {i: {label} for i, label in enumerate(LABELS)}
    assert (found.num_left_out, found.candidates, notes) == (0, None, [])


def test_several_labels_and_none_as_in_real(shards, tmp_path):
    found, notes = opened(shards, label_file=file(tmp_path, "real.json", [[2, 3], [], [1], [0, 2], []]))
    assert right(found) == {0: {2, 3}, 2: {1}, 3: {0, 2}}
    assert found.num_left_out == 2
    assert found.rows.tolist() == [0, 2, 3]
    assert notes == []


def test_places_beyond_the_last_image_have_no_class(shards):
    found, _ = opened(shards)
    for first, count, expected in ((0, 2, [2, 0]), (3, 4, [2, 3]), (5, 2, []), (90, 2, [])):
        places, classes = found.targets_of(first, count)
        assert classes.tolist() == expected
        assert places.tolist() == list(range(len(expected)))


def test_a_map_as_of_objectnet_leaves_classes_out_and_gives_some_several(shards, tmp_path):
    found, _ = opened(shards, num_classes=9, class_map=file(tmp_path, "map.json", {"2": [7, 8], "3": 5, "1": []}))
    assert right(found) == {0: {7, 8}, 3: {7, 8}, 4: {5}}
    assert found.num_left_out == 2


def test_a_restricted_set_chooses_among_its_map_or_its_labels(shards, tmp_path):
    listed = file(tmp_path, "classes.txt", "n1\nn5\nn6\nn0\nn3\n")
    found, _ = opened(shards, num_classes=8, names=tuple(f"n{i}" for i in range(8)), class_map=listed, restrict=True)
    assert found.candidates.tolist() == [0, 1, 3, 5, 6]  # n3 too, of which there is no image
    assert right(found)[0] == {6}
    found, _ = opened(shards, num_classes=1000, restrict=True)
    assert found.candidates.tolist() == [0, 1, 2, 3]


def test_a_file_in_another_order_is_noticed_and_images_without_a_line_are_counted(shards, tmp_path):
    _, notes = opened(shards, label_file=file(tmp_path, "real.json", [[0], [1], [2], [3], [2]]))
    assert notes[0].startswith("data.evaluation_sets.one: the labels in")
    assert "agree for 0 of 5 images" in notes[0]
    _, notes = opened(shards, label_file=file(tmp_path, "some.csv", "key,label\nval_2,0\nval_5.png,3\n"))
    assert notes == [
        f"data.evaluation_sets.one: {tmp_path / 'some.csv'} has no labels for 3 of 5 images, which are left out"
    ]


def test_the_digest_tells_labels_and_candidates_apart(shards, tmp_path):
    settings = (
        {},
        {"restrict": True},
        {"label_file": file(tmp_path, "a.json", [[2], [0], [1], [2], [3]])},
        {"label_file": file(tmp_path, "b.json", [[2, 1], [0], [1], [2], [3]])},
        {"label_file": file(tmp_path, "c.json", [[2], [0], [1], [2], []])},
    )
    digests = [opened(shards, **each)[0].digest for each in settings]
    assert digests[0] == digests[2]
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("num_classes", "settings", "message"),
    [
        (3, {}, r"image 'c3/val_5' has label 3, but data\.num_classes=3 .*set data\.evaluation_sets\.one\.class_map"),
        (4, {"label_file": "absent.json"}, r"absent\.json: can't read the labels: No such file"),
        (4, {"class_map": "absent.txt"}, r"absent\.txt: can't read the map of classes: No such file"),
    ],
)
def test_what_does_not_fit_is_refused(shards, num_classes, settings, message):
    with pytest.raises(InputError, match=message):
        opened(shards, num_classes, **settings)


def test_classes_of_other_numbers_need_a_map_which_their_names_may_be(shards):
    names = file(shards, "classes.txt", "1\n10\n2\n3\n")
    model = ("0", "1", "10", "2", "3")
    message = r"one\.shards=.*: class '1' is number 0 there and 1 in data\.train, .*; set .*\.one\.class_map"
    with pytest.raises(InputError, match=message):
        opened(shards, 5, model)
    found, _ = opened(shards, 5, model, class_map=names)
    assert right(found) == {i: {label + 1} for i, label in enumerate(LABELS)}
    found, _ = opened(shards, 5, ("1", "10", "2", "3", "4"))
    assert right(found) == {i: {label} for i, label in enumerate(LABELS)}


def test_a_set_of_which_no_image_is_left_is_refused(shards, tmp_path):
    with pytest.raises(InputError, match=r"one: none of 5 images has a class of the model"):
        opened(shards, class_map=file(tmp_path, "map.json", {"9": 1}))


def test_settings_come_as_mappings_as_objects_and_with_the_path_of_their_file(shards):
    given = {
        "__path__": "sets.yaml",
        "real": {"shards": "a", "labels": {"field": "f"}, "restrict": True},
        "v2": EvaluationSet("b"),
    }
    assert as_evaluation_sets(given) == {
        "real": EvaluationSet("a", labels=LabelSource(field="f"), restrict=True),
        "v2": EvaluationSet("b"),
    }
    assert as_evaluation_sets(None) == {}
    with pytest.raises(InputError, match=r"'a b' is no name of a set"):
        as_evaluation_sets({"a b": EvaluationSet("a")})


def test_what_is_odd_is_a_warning_of_vitlights_own(tiny_shards, shards, tmp_path):
    swapped = file(tmp_path, "real.json", [[0], [1], [2], [3], [2]])
    data = ShardedImages(
        train=str(tiny_shards / "train"),
        num_classes=4,
        image_size=8,
        global_batch_size=4,
        evaluation_sets={"real": EvaluationSet(str(shards), label_file=swapped)},
    )
    with pytest.warns(UserWarning, match="agree for 0 of 5 images") as caught:
        data.setup("test")
    assert caught[0].filename.endswith("vitlight/data/datamodule.py")  # so that it is one line for the user
    assert [opened.name for opened in data.opened_sets] == ["real"]


def test_each_loader_reads_the_evaluated_images_of_its_set_once(tiny_shards, shards, tmp_path):
    real = file(tmp_path, "real.json", [[2], [], [1], [0], []])
    data = ShardedImages(
        train=str(tiny_shards / "train"),
        test=str(tiny_shards / "test"),
        num_classes=4,
        image_size=8,
        global_batch_size=4,
        eval_batch_size=2,
        evaluation_sets={"real": EvaluationSet(str(shards), label_file=real), "plain": {"shards": str(shards)}},
    )
    data.setup("fit")
    official, first, second = data.test_dataloader()
    assert len(official) == 31
    weights = [[batch["weight"].tolist() for batch in loader] for loader in (first, second)]
    assert weights == [[[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]]
    assert [label for batch in first for label in batch["label"].tolist()] == [2, 1, 2, 0]
    assert [data.set_of_loader(i) and data.set_of_loader(i).name for i in range(3)] == [None, "real", "plain"]
    assert np.array_equal(data.opened_sets[0].rows, [0, 2, 3])


def test_the_files_of_sets_are_taken_by_the_command_line(tiny_shards):
    files = sorted((ROOT / "experiments" / "evaluation_sets").glob("*.yaml"))
    assert [path.stem for path in files] == ["imagenet"]
    base = f"--config={ROOT / 'experiments' / 'base.yaml'}"
    words = ["test", base, f"--data.train={tiny_shards / 'train'}", "--model.arch=vit_nano1", "--data.num_classes=4"]
    sets = ExperimentCLI([*words, f"--data.evaluation_sets={files[0]}"]).build_data().evaluation_sets
    assert list(sets) == ["real", "v2", "objectnet", "a", "r", "sketch"]
    assert sets["a"].restrict
    assert sets["real"].label_file == "data/imagenet/real.json"
