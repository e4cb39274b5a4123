"""The insight page in a real browser: everything is drawn, nothing is asked for, and it fits a phone."""

from pathlib import Path

import pytest

from tests.analysis.insight.looks import ARCHS, look
from tests.browser import Browser
from vitlight.analysis.insight import write_insight


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page for each of three networks, and one for all of them."""
    folder = tmp_path_factory.mktemp("insight")
    insights = {arch: look(arch) for arch in ARCHS}
    pages = {arch: write_insight([insight], folder / arch)[0] for arch, insight in insights.items()}
    return pages | {"together": write_insight(list(insights.values()), folder / "together", "Three networks")[0]}


HEADINGS = {
    "vit_nano1": [
        *("How far attention reaches", "Attention over images", "Effective receptive field", "First filters"),
        *("Principal components of the filters", "Position embeddings"),
    ],
    "coatnet_nano1": [
        *("How far attention reaches", "Attention over images", "Effective receptive field", "First filters"),
        *("Principal components of the filters", "Relative biases"),
    ],
    "resnet_nano1": ["Effective receptive field", "First filters", "Principal components of the filters"],
}


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("desktop", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")]
)
@pytest.mark.parametrize("which", ["vit_nano1", "coatnet_nano1", "resnet_nano1", "together"])
def test_pages_draw_all_there_is(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, which: str, name: str, width: int, scheme: str
) -> None:
    browser.open(pages[which], width, scheme)
    archs = list(ARCHS) if which == "together" else [which]
    headings = browser.run("[...document.querySelectorAll('.model h3')].map(heading => heading.textContent)")
    assert headings == [heading for arch in archs for heading in HEADINGS[arch]]
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth || !image.alt).length"
    assert browser.run(broken) == 0
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing makes the page scroll sideways"
    unseen = """[...document.querySelectorAll('.point')].filter(point => {
        const inner = point.getBoundingClientRect(), outer = point.ownerSVGElement.getBoundingClientRect();
        return !inner.width || inner.left < outer.left || inner.right > outer.right || inner.top < outer.top
            || inner.bottom > outer.bottom;
    }).length"""
    assert browser.run(unseen) == 0
    browser.keep_screenshot(f"insight_{which}_{name}.png", tmp_path)
    browser.assert_quiet(pages[which])


def test_every_head_is_a_dot_and_every_stage_two(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["coatnet_nano1"])
    assert browser.run("[...document.querySelectorAll('svg')].map(s => s.querySelectorAll('.point').length)") == [
        *(5, 5),  # distance and entropy of 2 + 3 heads
        *(0, 0, 0, 0),  # rings over receptive fields
        8,
    ]
    title = str(browser.run("document.querySelector('.point title').textContent"))
    assert title.startswith("coatnet_nano1, layer 0, head 0: ") and title.endswith(" px")
    assert browser.run("document.querySelectorAll('.field circle').length") == 8


def test_networks_stand_side_by_side_on_one_scale(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["together"])
    assert browser.run("document.querySelector('#together h2').textContent") == "Side by side"
    rows = browser.run("[...document.querySelectorAll('#together .sheet')].map(s => s.querySelectorAll('img').length)")
    assert rows == [4, 4, 3]
    colours = browser.run(
        "[...document.querySelectorAll('#together .legend .swatch')].map(s => getComputedStyle(s).backgroundColor)"
    )
    assert isinstance(colours, list) and len(set(colours)) == 3


def test_hostile_names_run_no_code(browser: Browser, tmp_path: Path) -> None:
    hostile = "</title><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    page, _ = write_insight([look("resnet_nano1", name=hostile, source=hostile)], tmp_path / "out", hostile)
    browser.open(page)
    assert browser.run("window.hacked") is None
    assert browser.run("document.querySelector('h1').textContent") == hostile
    browser.assert_quiet(page)
