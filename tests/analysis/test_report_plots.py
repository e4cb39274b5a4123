"""The report's switches, curves, laws, links and paper, in a real browser."""

import base64
import json
import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.analysis.fake_runs import result, write_evaluations, write_grid, write_run
from tests.browser import Browser
from vitlight.analysis import pareto_front, write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 cells of two seeds with their evaluations, one that diverged, and published models over them."""
    folder = tmp_path_factory.mktemp("plots")
    write_grid(folder / "runs")
    write_run(folder / "runs", result("vit_nano4", 8000, 0, status="diverged", reason="loss is NaN", top1=None))
    for run_dir in (folder / "runs" / "quickstart").iterdir():
        write_evaluations(run_dir)
    return write_report(folder / "runs", folder / "out", published=["models"], num_bootstrap=20)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 504 runs."""
    folder = tmp_path_factory.mktemp("many")
    sizes = tuple(500 * 2**i for i in range(7))
    write_grid(folder / "runs", rungs=(1, 2, 3, 4), sizes=sizes, seeds=tuple(range(6)))
    return write_report(folder / "runs", folder / "out", num_bootstrap=0)


def points_of(browser: Browser) -> list[dict]:
    return json.loads(str(browser.run("document.getElementById('report-data').textContent")))["points"]


def fronts(browser: Browser, chart: str) -> list[list[int]]:
    script = "[...document.querySelectorAll(arguments[0])].map(path => path.dataset.cells)"
    drawn = browser.run(script, f'figure[data-chart="{chart}"] .front')
    assert isinstance(drawn, list)
    return [[int(cell) for cell in cells.split()] for cells in drawn]


def choose(browser: Browser, select: str, value: str) -> None:
    script = "select.value = arguments[1]; select.dispatchEvent(new Event('change'))"
    browser.driver.execute_script(f"const select = document.querySelector(arguments[0]); {script}", select, value)


@pytest.mark.parametrize("axis", ["device_hours", "images_per_second", "params"])
def test_the_axis_switch_draws_the_front_of_that_axis(browser: Browser, page: Path, axis: str) -> None:
    browser.open(page)
    choose(browser, "#published", "off")
    choose(browser, "#axis", axis)
    own = [point for point in points_of(browser) if "group" not in point]
    sign = -1 if axis == "images_per_second" else 1  # of a rate, more is better
    front = pareto_front([sign * point["x"][axis] for point in own], [point["mean"] for point in own])
    assert fronts(browser, axis)[0] == [own[i]["id"] for i in front]
    title = browser.run("document.querySelector('figure.wide h3').textContent")
    assert str(title).startswith("Accuracy against ") and "forward" not in str(title)
    browser.assert_quiet(page)


def test_a_front_for_each_family(browser: Browser, page: Path) -> None:
    browser.open(page)
    choose(browser, "#published", "off")
    browser.click('button[data-front="families"]')
    own = [point for point in points_of(browser) if "group" not in point]
    expected = []
    for family in ("vit", "coatnet", "resnet"):
        members = [point for point in own if point["family"] == family]
        front = pareto_front([point["x"]["params"] for point in members], [point["mean"] for point in members])
        expected.append([members[i]["id"] for i in front])
    assert sorted(fronts(browser, "params")) == sorted(expected)


def test_published_results_come_and_go_and_change_no_own_front(browser: Browser, page: Path) -> None:
    browser.open(page, 390)
    published = [point for point in points_of(browser) if point.get("group") == "imagenet1k" and point["x"]["params"]]
    drawn = "document.querySelectorAll('figure[data-chart=params] .point.published').length"
    assert browser.run(drawn) == len(published) > 100
    own_front, published_front = fronts(browser, "params")
    members = pareto_front([point["x"]["params"] for point in published], [point["mean"] for point in published])
    assert published_front == [published[i]["id"] for i in members]
    assert browser.run("document.documentElement.scrollWidth") == 390, "nothing makes a phone scroll sideways"
    choose(browser, "#published", "off")
    assert browser.run(drawn) == 0
    assert fronts(browser, "params") == [own_front]
    browser.assert_quiet(page)


def test_a_linear_axis_starts_at_zero(browser: Browser, page: Path) -> None:
    browser.open(page)
    choose(browser, "#published", "off")
    browser.click('button[data-scale="linear"]')
    texts = "document.querySelectorAll('figure[data-chart=params] .axes text[text-anchor=middle]')"
    ticks = browser.run(f"[...{texts}].map(text => text.textContent)")
    assert isinstance(ticks, list)
    assert ticks[:2] == ["0", "200k"]


def test_a_click_pins_the_numbers_with_links_to_the_runs(browser: Browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page)
    choose(browser, "#published", "off")
    point = browser.driver.find_element("css selector", 'figure[data-chart="forward_flops"] .point[data-family="vit"]')
    browser.run("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser.driver).move_to_element(point).click().perform()
    browser.wait("document.querySelectorAll('#tip a').length === 2")
    links = browser.run("[...document.querySelectorAll('#tip a')].map(link => link.href)")
    assert isinstance(links, list)
    for link in links:
        assert (Path(unquote(urlparse(link).path)) / "result.json").exists(), link
    browser.click("h1")
    browser.wait("document.getElementById('tip').hidden")


def test_enter_reaches_the_links_without_a_pointer(browser: Browser, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    choose(browser, "#published", "off")
    svg = browser.driver.find_element("css selector", 'figure[data-chart="params"] svg')
    svg.send_keys(Keys.ARROW_RIGHT)
    browser.wait("document.querySelector('.is-current') !== null")
    svg.send_keys(Keys.ENTER)
    browser.wait("document.activeElement.matches('#tip a')")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.wait("document.getElementById('tip').hidden")
    assert browser.run("document.activeElement.closest('figure').dataset.chart") == "params"


def test_curves_and_laws_are_drawn_with_what_was_held_out(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("[...document.querySelectorAll('[data-curves]')].map(f => f.dataset.curves)") == [
        *("vit", "coatnet", "resnet")
    ]
    assert browser.run("document.querySelectorAll('[data-curves] .curve').length") == 27
    browser.click('button[data-filter-size="500"]')
    assert browser.run("document.querySelectorAll('[data-curves] .curve').length") == 18
    laws = json.loads(str(browser.run("document.getElementById('report-data').textContent")))["laws"]
    assert [law["family"] for law in laws] == ["coatnet", "resnet", "vit"]
    for place, law in enumerate(laws):
        held = sum(point["predicted"] is not None for point in law["points"])
        figure = f'figure[data-law="{place}"]'
        assert browser.run("document.querySelectorAll(arguments[0]).length", f"{figure} .held") == held > 0
        assert browser.run("document.querySelectorAll(arguments[0]).length", f"{figure} .band") == 3
        assert (
            browser.run("document.querySelectorAll(arguments[0]).length", f"{figure} path.point")
            == len(law["points"])
            == 18
        )
    text = str(browser.run("document.getElementById('laws').textContent"))
    assert "off in error on average" in text and "loss is NaN" in text
    browser.assert_quiet(page)


def test_paper_gets_plots_of_its_own_size_in_light_colours(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, scheme="dark")
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    folder = Path(os.environ.get("VITLIGHT_ARTIFACTS", tmp_path))
    (folder / "report_print.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF-") and len(pdf) > 50_000
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelector('figure.wide svg').viewBox.baseVal.width") == 680
    assert browser.run("getComputedStyle(document.querySelector('figure')).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert browser.run("[...document.querySelectorAll('details')].every(details => details.open)") is True
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelector('details.numbers').open") is False
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 390)])
def test_five_hundred_runs_open_whole_and_quiet(
    browser: Browser, many: Path, tmp_path: Path, name: str, width: int
) -> None:
    browser.open(many, width)
    assert browser.per_chart(".point") == [84] * 4
    assert browser.per_chart(".seed") == [504] * 4
    assert browser.run("document.querySelectorAll('.runs tbody tr').length") == 504
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.keep_screenshot(f"report_500_{name}.png", tmp_path)
    browser.assert_quiet(many)


def test_published_models_alone_make_a_page_with_their_fronts(browser: Browser, tmp_path: Path) -> None:
    page = write_report(["published:models"], tmp_path / "out")
    browser.open(page)
    shown = [point for point in points_of(browser) if point["group"] == "imagenet1k"]
    for chart in ("forward_flops", "params"):
        members = [point for point in shown if point["x"][chart]]
        front = pareto_front([point["x"][chart] for point in members], [point["mean"] for point in members])
        assert fronts(browser, chart) == [[members[i]["id"] for i in front]]
    assert browser.run("document.querySelector('.lede').textContent") == (
        "Results that others published; none of them was trained here."
    )
    browser.keep_screenshot("report_published.png", tmp_path)
    browser.assert_quiet(page)
