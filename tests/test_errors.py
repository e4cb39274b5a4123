import pytest

from vitlight.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_s61", "; did you mean vit_s16?"),
        ("resnet5", "; did you mean resnet50 or resnet18?"),
        ("zzz", ""),
    ],
)
def test_near_names_are_offered(name, expected):
    assert did_you_mean(name, ["vit_s16", "resnet50", "resnet18"]) == expected
