"""What a test does when this machine lacks something it needs: it skips, or fails where everything is required."""

import os

import pytest

__all__ = ["require"]


def require(condition: bool, what: str) -> None:
    """Skip the test unless `condition` holds; under VITLIGHT_REQUIRE_ALL=1, fail it. `what` names what is missing."""
    if condition:
        return
    if os.environ.get("VITLIGHT_REQUIRE_ALL") == "1":
        pytest.fail(f"VITLIGHT_REQUIRE_ALL=1 and this machine lacks {what}", pytrace=False)
    pytest.skip(f"this machine lacks {what}")
