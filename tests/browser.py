"""Headless Chromium for the tests that look at a page as a person would."""

import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import require

__all__ = ["CHART_KEYS", "Browser", "start_browser"]

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"),
]
CHART_KEYS = ["forward_flops", "params", "train_flops", "images"]


class Browser:
    """Headless Chromium through selenium, with its console and network logs."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # reading empties it
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, condition: str, seconds: float = 10.0) -> None:
        """Until the condition holds; keys reach the page a moment after they are sent."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def per_chart(self, selector: str) -> list[object]:
        """How many elements of each chart match."""
        return [
            self.run("document.querySelectorAll(arguments[0]).length", f'figure[data-chart="{key}"] svg {selector}')
            for key in CHART_KEYS
        ]

    def assert_quiet(self, page: Path) -> None:
        """Nothing on the console, and no request but for the page itself."""
        assert self.driver.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith("data:")} <= {page.as_uri()}
        assert [m for m in messages if m["method"] == "Network.loadingFailed"] == []

    def keep_screenshot(self, name: str, folder: Path) -> None:
        """The whole page as PNG into `folder`, or into VITLIGHT_ARTIFACTS where that is set."""
        folder = Path(os.environ.get("VITLIGHT_ARTIFACTS", folder))
        folder.mkdir(parents=True, exist_ok=True)
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (folder / name).write_bytes(base64.b64decode(shot["data"]))
        assert (folder / name).stat().st_size > 10_000


def start_browser(profile: Path) -> Iterator[Browser]:
    """The body of the fixture `browser`."""
    require(CHROMIUM.exists() and CHROMEDRIVER.exists(), "chromium and chromedriver")
    try:
        import selenium  # noqa: F401
    except ImportError:
        require(False, "selenium")
    browser = Browser(profile)
    yield browser
    browser.driver.quit()
