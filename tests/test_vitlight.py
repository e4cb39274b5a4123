import importlib.metadata

import pytest

import vitlight


@pytest.mark.parametrize("name", vitlight.__all__)
def test_every_public_name_is_there_and_is_documented(name):
    value = getattr(vitlight, name)
    assert name == "__version__" or value.__doc__.strip()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        vitlight.no_such_name  # noqa: B018


def test_the_version_is_the_distributions():
    assert importlib.metadata.version("vitlight") == vitlight.__version__
