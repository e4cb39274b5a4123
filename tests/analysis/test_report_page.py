"""The report page in a real browser: it draws, filters, sorts, and asks for nothing."""

import json
from pathlib import Path

import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from tests.browser import CHART_KEYS, Browser
from vitlight.analysis import pareto_front, write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 27 cells with two seeds, one with a single seed, and a run each that failed, diverged and runs."""
    folder = tmp_path_factory.mktemp("report")
    write_grid(folder / "runs")
    write_run(folder / "runs", result("vit_nano4", 2000, 0))
    write_run(folder / "runs", result("vit_nano4", 8000, 0, status="diverged", reason="loss is NaN", top1=None))
    write_run(folder / "runs", result("vit_nano4", 500, 0, status="failed", reason="out of memory"))
    under_way = write_run(folder / "runs", result("vit_nano4", 8000, 1))
    (under_way / "result.json").unlink()
    return write_report(folder / "runs", folder / "out")


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("desktop", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")]
)
def test_every_chart_draws_its_points_without_a_word(
    browser: Browser, page: Path, tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    browser.open(page, width, scheme)
    assert browser.per_chart(".point") == [28] * 4
    assert browser.per_chart(".point.single") == [1] * 4
    assert browser.per_chart(".spread") == [27] * 4
    assert browser.per_chart(".seed") == [54] * 4
    assert browser.per_chart(".line") == [9, 9, 10, 10]
    assert browser.per_chart(".front") == [1] * 4
    outside = """[...document.querySelectorAll('.point')].filter(point => {
        const inner = point.getBoundingClientRect(), outer = point.ownerSVGElement.getBoundingClientRect();
        return !inner.width || inner.left < outer.left || inner.right > outer.right || inner.top < outer.top
            || inner.bottom > outer.bottom;
    }).length"""
    assert browser.run(outside) == 0
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing makes the page scroll sideways"
    browser.keep_screenshot(f"report_{name}.png", tmp_path)
    browser.assert_quiet(page)


def test_a_family_filter_hides_its_points_in_all_charts(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click('button[data-filter-family="vit"]')
    assert browser.per_chart('[data-family="vit"]') == [0] * 4
    assert browser.per_chart(".point") == [18] * 4
    assert browser.run("document.querySelectorAll('tbody tr[data-family=vit]:not([hidden])').length") == 0
    assert browser.run("document.querySelector('[data-filter-family=vit]').getAttribute('aria-pressed')") == "false"
    browser.click('button[data-filter-family="vit"]')
    assert browser.per_chart('.point[data-family="vit"]') == [10] * 4
    browser.assert_quiet(page)


def test_a_size_filter_acts_on_all_charts(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click('button[data-filter-size="500"]')
    browser.click('button[data-filter-size="8000"]')
    assert browser.per_chart(".point") == [10] * 4
    browser.click('button[data-filter-size="2000"]')
    assert browser.per_chart(".point") == [0] * 4
    assert browser.per_chart(".empty") == [1] * 4
    browser.assert_quiet(page)


def test_the_front_is_pareto_front_of_what_is_shown(browser: Browser, page: Path) -> None:
    browser.open(page)
    points = json.loads(str(browser.run("document.getElementById('report-data').textContent")))["points"]
    for hidden in (None, "coatnet"):
        shown = [point for point in points if point["family"] != hidden]
        if hidden:
            browser.click(f'button[data-filter-family="{hidden}"]')
        for key in CHART_KEYS:
            front = pareto_front([point["x"][key] for point in shown], [point["mean"] for point in shown])
            drawn = browser.run(
                "document.querySelector(arguments[0]).dataset.cells", f'figure[data-chart="{key}"] .front'
            )
            assert str(drawn).split() == [str(shown[i]["id"]) for i in front], (key, hidden)


def test_error_on_a_log_axis(browser: Browser, page: Path) -> None:
    browser.open(page)
    points = "[...document.querySelectorAll('figure[data-chart=params] .point')]"
    read_heights = f"""Object.fromEntries({points}.map(point => {{
        const box = point.getBoundingClientRect(), svg = point.ownerSVGElement.getBoundingClientRect();
        return [point.dataset.cell, (box.top + box.bottom) / 2 - svg.top];
    }}))"""
    accuracy = browser.run(read_heights)
    browser.click('button[data-measure="error"]')
    error = browser.run(read_heights)
    assert isinstance(accuracy, dict) and isinstance(error, dict)
    best, worst = min(accuracy, key=accuracy.__getitem__), max(accuracy, key=accuracy.__getitem__)
    assert error[best] > error[worst], "the best model has the least error, which is drawn lowest"
    assert browser.run("document.querySelector('figure h3').textContent") == "Error against forward FLOPs"
    browser.assert_quiet(page)


def test_hovering_tells_the_numbers_of_a_point(browser: Browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page)
    point = browser.driver.find_element("css selector", 'figure[data-chart="forward_flops"] .point.single')
    browser.run("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser.driver).move_to_element(point).perform()
    assert browser.run("document.getElementById('tip').hidden") is False
    text = str(browser.run("document.getElementById('tip').textContent"))
    for told in (
        "vit_nano4",
        "one: spread unknown",
        "160 MMAC = 320 MFLOP",
        "2,000",
        "parameters3.2M",
        "points, 10,000 images",
    ):
        assert told in text
    browser.assert_quiet(page)


def test_arrow_keys_step_through_points(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    svg = browser.driver.find_element("css selector", 'figure[data-chart="params"] svg')
    svg.send_keys(Keys.ARROW_RIGHT)
    browser.wait("document.querySelector('.is-current') !== null")
    first = browser.run("document.querySelector('.is-current').dataset.cell")
    svg.send_keys(Keys.ARROW_RIGHT)
    browser.wait(f"document.querySelector('.is-current').dataset.cell !== {json.dumps(first)}")
    svg.send_keys(Keys.ESCAPE)
    browser.wait("document.getElementById('tip').hidden")
    assert browser.run("document.getElementById('tip').hidden") is True


def test_the_run_table_sorts_by_number_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    column = browser.run("[...document.querySelectorAll('.runs th')].findIndex(th => th.textContent === 'top-1')")
    read = "[...document.querySelectorAll('.runs tbody tr')].map(row => Number(row.cells[arguments[0]].dataset.value))"
    header = f".runs th:nth-child({int(str(column)) + 1}) button"
    for reverse in (False, True):
        browser.click(header)
        values = browser.run(read, column)
        assert isinstance(values, list)
        assert len(values) == 55
        assert values == sorted(values, reverse=reverse)


def test_hostile_names_run_no_code(browser: Browser, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=\"window.hacked=1\"><svg onload='window.hacked=1'>"
    run = result("vit_nano1", 500, 0) | {"arch": hostile, "family": hostile, "commit": hostile, "run_id": "a"}
    write_run(tmp_path / "runs", run)
    write_run(tmp_path / "runs", result("vit_nano1", 500, 1, status="failed", reason=hostile))
    page = write_report(tmp_path / "runs", tmp_path / "out")
    browser.open(page)
    assert browser.run("window.hacked") is None
    assert browser.per_chart(".point") == [1] * 4
    assert browser.run("document.querySelector('figure .point').dataset.family") == hostile
    browser.driver.find_element("css selector", "button[data-filter-family]").click()
    assert browser.per_chart(".point") == [0] * 4
    browser.assert_quiet(page)


def test_a_page_without_a_finished_run_is_quiet(browser: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", result("vit_nano1", 500, 0, status="failed", reason="boom"))
    page = write_report(tmp_path / "runs", tmp_path / "out")
    browser.open(page)
    assert "boom" in str(browser.run("document.body.textContent"))
    browser.assert_quiet(page)
