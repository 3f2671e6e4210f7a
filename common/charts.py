"""Curves as SVG inside an HTML page. Their colours are the page's CSS classes, so they follow its dark and light.

    300  |  . .                     chart(title, {class: points}) -> one <svg>; points (x, y) with x from 0 to 1
     10  | -----------              several classes: several lines in one frame
      1  |________________
         0 %            100 %
"""

import math
from html import escape

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36  # margins, which hold the numbers of the axes

Points = list[tuple[float, float]]


def chart(title: str, lines: dict[str, Points], band: tuple[list[float], list[float], list[float]] | None = None,
          level: float | None = None, logarithmic: bool = False) -> str:
    """Draw lines in one frame -> an <svg> element.

    title: what a screen reader reads; lines: CSS class -> points, x in [0, 1]; band: x, lowest and highest y of an area behind;
    level: y of a dashed line. With logarithmic all y must be positive.
    """
    values = [y for points in lines.values() for _, y in points] + [y for ys in (band or ())[1:] for y in ys]
    values += [level] if level is not None else []
    bottom, top = bounds(min(values), max(values), logarithmic)
    bend = math.log if logarithmic else float

    def place(x: float, y: float) -> str:
        height = (bend(y) - bend(bottom)) / (bend(top) - bend(bottom))
        return f"{LEFT + x * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM):.1f}"

    def line(css: str, points: Points) -> str:
        return f'<polyline class="{css}" points="{" ".join(place(x, y) for x, y in points)}"/>'

    parts = [axis_y(tick, place(0, tick).split(",")[1]) for tick in ticks(bottom, top, logarithmic)]
    parts += [axis_x(x, place(x, bottom).split(",")[0]) for x in (0, 0.25, 0.5, 0.75, 1)]
    if band:
        x, low, high = band
        corners = [place(*point) for point in [*zip(x, low), *reversed([*zip(x, high)])]]
        parts.append(f'<polygon class="band" points="{" ".join(corners)}"/>')
    if level is not None:
        parts.append(line("level", [(0, level), (1, level)]))
    parts += [line(css, points) for css, points in lines.items()]
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
            + "".join(parts) + "</svg>")


def axis_y(value: float, y: str) -> str:
    return (f'<path class="tick" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{value:,g}</text>')


def axis_x(share: float, x: str) -> str:
    return f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{"end" if share == 1 else "middle"}">{100 * share:.0f} %</text>'


def bounds(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """Widen a range by a twentieth on both sides, and a range of one value by more."""
    if logarithmic:
        factor = (high / low) ** 0.05 if high > low else 2.0
        return low / factor, high * factor
    margin = 0.05 * (high - low) or abs(high) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Choose two to eight round numbers in a range for its axis."""
    if logarithmic and high / low >= 5:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [tick for power in powers for digit in digits if low <= (tick := float(f"{digit}e{power}")) <= high]
            if len(found) <= 8:
                return found
        return found[:: math.ceil(len(found) / 8)]
    rough = (high - low) / 6
    step = next(size for digit in (1, 2, 5, 10) if (size := digit * 10 ** math.floor(math.log10(rough))) >= rough)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
