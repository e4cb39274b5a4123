"""The policy for what a machine may lack."""

import pytest

from tests.requirements import require


def test_a_missing_thing_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLIGHT_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="lacks chromium"):
        require(False, "chromium")
    monkeypatch.setenv("VITLIGHT_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="VITLIGHT_REQUIRE_ALL=1 and this machine lacks chromium"):
        require(False, "chromium")
    assert require(True, "chromium") is None
