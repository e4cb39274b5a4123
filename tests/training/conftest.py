"""What tests of training share."""

from collections.abc import Iterator

import pytest

from tests.training.zygote import Zygote, open_zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with open_zygote() as zygote:
        yield zygote
