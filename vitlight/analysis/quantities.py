"""How the report writes quantities: SI prefixes, percent, durations, and the FLOP convention, in one place."""

__all__ = [
    "FLOP_CONVENTION",
    "TRAIN_FLOP_CONVENTION",
    "format_commit",
    "format_count",
    "format_duration",
    "format_percent",
    "format_points",
    "format_si",
    "format_top1",
]

FLOP_CONVENTION = "FLOP = half a MAC"
TRAIN_FLOP_CONVENTION = "training FLOPs = 3 × 2 × forward MACs × samples seen"

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")


def format_si(value: float, unit: str = "", digits: int = 3) -> str:
    """A count of 0 or more in `digits` significant digits with an SI prefix: `1.23M`, or `1.23 MFLOP` with a unit."""
    thousands = 0
    scaled = float(value)
    while float(f"{scaled:.{digits}g}") >= 1000 and thousands < len(_PREFIXES) - 1:
        scaled /= 1000
        thousands += 1
    text = f"{float(f'{scaled:.{digits}g}'):.{digits}f}".rstrip("0").rstrip(".")
    return f"{text} {_PREFIXES[thousands]}{unit}" if unit else text + _PREFIXES[thousands]


def format_commit(commit: str) -> str:
    """The first 12 digits, and whether the working copy was changed: `0123456789ab-dirty`."""
    digits, dash, mark = commit.partition("-")
    return digits[:12] + dash + mark


def format_count(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `3 families`."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun}"


def format_percent(fraction: float, decimals: int = 1) -> str:
    """0.7154 is `71.5 %`."""
    return f"{100 * fraction:.{decimals}f} %"


def format_points(fraction: float, decimals: int = 1) -> str:
    """A difference of two fractions in percentage points, without its sign: -0.0154 is `1.5 points`."""
    return f"{100 * abs(fraction):.{decimals}f} points"


def format_top1(mean: float, std: float | None, decimals: int = 1) -> str:
    """Mean and spread in percent without the sign: `71.5 ± 0.4`, or `71.5` where there is no spread to tell. A spread
    that would round to zero is written as a bound."""
    if std is None:
        return f"{100 * mean:.{decimals}f}"
    smallest = 10.0**-decimals
    spread = f"{100 * std:.{decimals}f}" if 100 * std >= smallest / 2 or std == 0 else f"<{smallest:g}"
    return f"{100 * mean:.{decimals}f} ± {spread}"


def format_duration(seconds: float) -> str:
    """Two units at most: `4.2 s`, `3 min 5 s`, `2 h 7 min`, `5 d 3 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
