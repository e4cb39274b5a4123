"""The insight page: one HTML file that holds its own pictures and style, runs no script and may load nothing."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from vitlight.analysis.charts import FamilyStyle, family_key, family_styles
from vitlight.analysis.insight.figures import MOST_FILTERS
from vitlight.analysis.insight.filters import as_pictures
from vitlight.analysis.insight.html import data_uri, field_tile, subsection, tile, tiles
from vitlight.analysis.insight.insight import Insight
from vitlight.analysis.insight.page_attention import attention_parts, distance_dots, legend
from vitlight.analysis.insight.pictures import heat, signed, similarity_sheet
from vitlight.analysis.insight.svg import Dot, Series, chart
from vitlight.analysis.quantities import format_count
from vitlight.models import arch_family

__all__ = ["build_page", "model_styles"]

_STYLES = ("report.css", "insight.css", "print.css")
_MOST_BIAS_HEADS = 16


def model_styles(insights: Sequence[Insight]) -> list[FamilyStyle]:
    """Of each model its family's colour and marker; of several in one family the first has it, and the others have
    their own."""
    keys: list[str] = []
    for insight in insights:
        family = family_key(arch_family(insight.arch))
        keys.append(family if family not in keys else insight.name)
    styles = family_styles(keys)
    return [styles[family_key(key)] for key in keys]


def build_page(insights: Sequence[Insight], title: str, beside: Sequence[str] = ()) -> str:
    """The page on one network or several: the same bytes for the same insights. `beside` names files that lie in its
    folder."""
    assets = files("vitlight.analysis") / "assets"
    styles = model_styles(insights)
    together = _together(insights, styles) if len(insights) > 1 else ""
    models = "\n".join(_model(insight, i, styles[i], len(insights) > 1) for i, insight in enumerate(insights))
    named = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in beside)
    sources = "".join(f"<p>{escape(insight.name)}: {escape(insight.source)}</p>" for insight in insights)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(title)}: vitlight insight</title>
<style>
{"".join((assets / name).read_text(encoding="utf-8") for name in _STYLES)}{_colours(styles)}</style>
</head>
<body>
<main>
<header>
<p class="kicker">vitlight insight</p>
<h1>{escape(title)}</h1>
<p class="lede">What {"these networks have" if len(insights) > 1 else "this network has"} learned, seen from inside.</p>
</header>
{together}
{models}
</main>
<footer>
{sources}
{f"<p>Beside this page: {named}.</p>" if beside else ""}
</footer>
</body>
</html>
"""


def _colours(styles: Sequence[FamilyStyle]) -> str:
    light = " ".join(f"--family-{i}: {style.light};" for i, style in enumerate(styles))
    dark = " ".join(f"--family-{i}: {style.dark};" for i, style in enumerate(styles))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _together(insights: Sequence[Insight], styles: Sequence[FamilyStyle]) -> str:
    """All networks side by side."""
    charts = [_radius_chart(insights, styles)] if any(insight.fields for insight in insights) else []
    series = []
    for i, (insight, style) in enumerate(zip(insights, styles, strict=True)):
        if insight.attention is not None:
            series.append(
                distance_dots(insight, insight.attention, "distance", f"var(--family-{i})", style, relative=True)
            )
    if series:
        label = "Mean attention distance of each head against depth, a colour a network."
        charts.append(
            chart(
                series,
                "depth: share of the attention layers",
                "Mean attention distance of each head (px)",
                label,
                (0, 1),
            )
        )
    if not charts:
        return ""
    names = legend([(insight.name, f"var(--family-{i})") for i, insight in enumerate(insights)])
    kind = "pair" if len(charts) > 1 else "pair single"
    most = max(len(insight.fields) for insight in insights)
    rows = [_field_row(insight, _largest(insights), most) for insight in insights if insight.fields]
    scale = f'<p class="note">{_FIELD_NOTE} Every square is {_largest(insights)} pixels wide.</p>' if rows else ""
    return f"""<section id="together">
<h2>Side by side</h2>
<p class="note">In pixels of the image that each network sees. Solid: the radius that holds 90 % of the effective
receptive field; dashed: 50 %.</p>
{names}
<div class="{kind}">{"".join(charts)}</div>
{scale}
{"".join(rows)}
</section>"""


def _radius_chart(insights: Sequence[Insight], styles: Sequence[FamilyStyle]) -> str:
    series = []
    for i, (insight, style) in enumerate(zip(insights, styles, strict=True)):
        for share in (90, 50):
            points = [(field.depth, getattr(field, f"radius_{share}"), field.label) for field in insight.fields]
            dots = [Dot(x, y, f"{insight.name}, {label}: {share} % within {y:.3g} px") for x, y, label in points]
            line = [(x, y) for x, y, _ in points]
            series.append(Series(f"var(--family-{i})", style.marker, dots, line, dashed=share == 50))
    label = "Radius of the effective receptive field against depth."
    return chart(
        series,
        "depth: share of the blocks",
        "Radius of the receptive field (px): solid 90 %, dashed 50 %",
        label,
        (0, 1),
    )


_FIELD_NOTE = (
    "The middle unit of each stage: absolute gradient of the sum of its channels with respect to the image, summed over "
    "the colours, scaled to sum to 1, and the mean over the images; drawn as its square root. The solid ring holds 90 % of "
    "it, the dashed one 50 %."
)


def _largest(insights: Sequence[Insight]) -> int:
    return max(insight.image_size for insight in insights)


def _field_row(insight: Insight, largest: int, columns: int) -> str:
    """columns: of which some stay empty, so that pixels are as large in other rows."""
    members = [
        field_tile(
            heat(field.field.sqrt()),
            field.centre,
            (field.radius_90, field.radius_50),
            f"{field.label}\n{field.radius_50:.3g} / {field.radius_90:.3g} px",
            insight.image_size / largest,
            f"{insight.name}, {field.label}: effective receptive field",
        )
        for field in insight.fields
    ]
    sheet = tiles(members, 84, columns=columns, label=f"receptive fields of {insight.name}")
    return f'<div class="part"><p class="heads">{escape(insight.name)}, {insight.image_size} px</p>{sheet}</div>'


def _model(insight: Insight, place: int, style: FamilyStyle, of_several: bool) -> str:
    colour = f"var(--family-{place})"
    parts = attention_parts(insight, insight.attention, colour, style) if insight.attention is not None else []
    if insight.fields:
        row = _field_row(insight, insight.image_size, len(insight.fields))
        single = "" if of_several else f'<div class="pair single">{_radius_chart([insight], [style])}</div>'
        parts.append(subsection("Effective receptive field", _FIELD_NOTE, row, single))
    parts += _filter_parts(insight)
    if insight.similarity is not None:
        parts.append(_position_part(insight))
    if insight.biases:
        parts.append(_bias_part(insight))
    images = f", {format_count(insight.num_images, 'image')}" if insight.num_images else ""
    missing = "".join(f"<li>{escape(line)}</li>" for line in insight.missing)
    listed = f'<ul class="missing-parts" aria-label="Not here">{missing}</ul>' if missing else ""
    swatch = f'<span class="swatch" style="--colour: {colour}"></span>' if of_several else ""
    name = insight.name if insight.arch in insight.name else f"{insight.name} ({insight.arch})"
    heading = f"<h2>{swatch}{escape(name)}</h2>" if of_several else f'<h2 class="aside">{escape(name)}</h2>'
    return f"""<section class="model">
{heading}
<p class="origin">{escape(insight.source)} · {insight.image_size} px{images}</p>
{listed}
{"".join(parts)}
</section>"""


def _filter_parts(insight: Insight) -> list[str]:
    if insight.filters is None or insight.components is None:
        return []
    kernels = insight.filters.kernels
    shown = as_pictures(kernels[:MOST_FILTERS]).numpy()
    of = f"The first {len(shown)} of {len(kernels)}" if len(shown) < len(kernels) else f"All {len(kernels)}"
    side = kernels.shape[-1]
    note = (
        f"{of} kernels of <code>{escape(insight.filters.layer)}</code>, {side} x {side} pixels at stride "
        f"{insight.filters.stride}. Each is scaled by its own largest weight; grey is 0."
    )
    members = [tile(picture, alt=f"filter {i}") for i, picture in enumerate(shown)]
    components, shares = insight.components
    pictures = as_pictures(components).numpy()
    captions = [f"{100 * share:.1f} %" for share in shares.tolist()]
    first = [
        tile(picture, caption, alt=f"principal component {i}")
        for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
    ]
    explained = 100 * float(shares.sum())
    which = f"The first {len(pictures)} of {kernels[0].numel()}" if len(pictures) < kernels[0].numel() else "All"
    return [
        subsection("First filters", note, tiles(members, 44)),
        subsection(
            "Principal components of the filters",
            f"{which} directions, after the mean kernel is taken off, with the share of the variance that each explains: "
            f"{explained:.1f} % together. Scaled as the filters are.",
            tiles(first, 60),
        ),
    ]


def _position_part(insight: Insight) -> str:
    assert insight.similarity is not None
    rows, columns = insight.similarity.shape[:2]
    spread = ", seven evenly spread rows and columns of them" if max(rows, columns) > 7 else ""
    note = (
        f"Cosine similarity of the position embedding of each of the {rows} x {columns} patches{spread} with all others, at "
        "the patch's place. From -1, dark blue, to 1, yellow."
    )
    picture = similarity_sheet(insight.similarity)
    image = (
        f'<div class="positions"><div class="tiles"><figure><img class="grain" src="{data_uri(picture)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}" alt="position embedding similarity"></figure></div></div>'
    )
    return subsection("Position embeddings", note, image)


def _bias_part(insight: Insight) -> str:
    note = (
        "What attention adds to a logit, whatever the image, for where the key lies as seen from the query: the middle is "
        "the query's own place, to the right of it lie keys on the right. Red is more, blue is less, white is 0; one scale "
        "a layer."
    )
    rows = []
    for bias in insight.biases:
        largest = float(bias.tables.abs().max())
        shown = bias.tables[:_MOST_BIAS_HEADS]
        members = [
            tile(signed(table, largest), f"head {head}", alt=f"relative bias of layer {bias.index}, head {head}")
            for head, table in enumerate(shown)
        ]
        of = f", the first {len(shown)} of {len(bias.tables)} heads" if len(shown) < len(bias.tables) else ""
        side = bias.tables.shape[-1]
        words = f"layer {bias.index}, up to ± {largest:.2g}; {side} x {side} displacements of {bias.stride} px{of}"
        rows.append(f'<p class="heads">{escape(words)}</p>{tiles(members, 76)}')
    return subsection("Relative biases", note, *rows)
