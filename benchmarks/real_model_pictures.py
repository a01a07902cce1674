"""Draw the pictures of docs/real-model.md from benchmarks/results.

python benchmarks/real_model_pictures.py
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 270, 66, 44, 110, 34
COLOURS = ("#777", "#1b6ac9", "#d1492e", "#2a8a4a")
Point = tuple[float, float]


def main() -> None:
    curves = json.loads((RESULTS / "real_model_curves.json").read_text("utf-8"))["curves"]
    drawn = [
        panel(f"{name}: held-out loss, nats a token; x: steps", lines_of(task, curves), place)
        for place, (name, task) in enumerate({"restoring": "autoencoding", "continuing": "continuation"}.items())
    ]
    write("real-model.svg", drawn)
    rows = json.loads((RESULTS / "codecs_real_model.json").read_text("utf-8"))
    vectors = rows["measured"]["vectors"] / rows["measured"]["documents"]
    panels = [
        scatter(title, [(r["codec"], r["bytes_per_vector"] * vectors, r[name]) for r in rows["codecs"]], place)
        for place, (title, name) in enumerate(
            {"real model: KL, nats": "kl", "real model: change of loss, nats a token": "delta_nll"}.items()
        )
    ]
    panels.append(scatter("toy: exact match, %", toy(), 2))
    write("bits.svg", panels)


def lines_of(task: str, curves: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """Return the curves of a task: with nothing read and with the text, of the longest training, and with memory."""
    longest = max(curves, key=lambda curve: curve["points"][-1]["step"])
    lines = {name: [(p["step"], p[f"{task}_{name}"]) for p in longest["points"]] for name in ("none", "text")}
    for curve in curves:
        lines[f"rate {curve['rate']}"] = [(p["step"], p[f"{task}_memory"]) for p in curve["points"]]
    return lines


def toy() -> list[tuple[str, float, float]]:
    """Return codec, bytes a document and exact match in percent, from the table of benchmarks/answer_quality.py."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+)%", (DOCS / "codecs.md").read_text("utf-8"), re.M)
    return [(codec, float(size.replace(",", "")), float(share)) for codec, size, share in rows]


def write(name: str, panels: Sequence[str]) -> None:
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11"'
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect width="100%" height="100%" fill="#fff"/>\n'
    (DOCS / name).write_text(text + "\n".join(panels) + "\n</svg>\n", "utf-8")


def panel(title: str, lines: dict[str, list[Point]], place: int) -> str:
    """Return a panel of lines, each named at its end."""
    points = [point for line in lines.values() for point in line]
    x, y, drawn = axes(title, points, place, lambda value: value)
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        path = " ".join(f"{x(a):.0f},{y(b):.0f}" for a, b in line)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        a, b = line[-1]
        # Other lines may go on below one that stops early.
        height = y(b) + (4 if a == max(each for each, _ in points) else -6)
        drawn.append(f'<text x="{x(a) + 5:.0f}" y="{height:.0f}" fill="{colour}">{name} {b:.2f}</text>')
    return "\n".join(drawn)


def scatter(title: str, points: Sequence[tuple[str, float, float]], place: int) -> str:
    """Return a panel of named points over bytes a passage, which have a logarithmic scale."""
    x, y, drawn = axes(f"{title}; x: bytes a passage", [(a, b) for _, a, b in points], place, math.log)
    for name, a, b in points:
        drawn.append(f'<circle cx="{x(a):.0f}" cy="{y(b):.0f}" r="3" fill="{COLOURS[1]}"/>')
        height = y(b) + (13 if name.startswith("fisher") else -4)
        drawn.append(f'<text x="{x(a) + 5:.0f}" y="{height:.0f}">{name}</text>')
    return "\n".join(drawn)


def axes(
    title: str, points: Sequence[Point], place: int, scale: Callable[[float], float]
) -> tuple[Callable[[float], float], Callable[[float], float], list[Any]]:
    """Return functions from values to places in the picture, and the axes."""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    left, width, height = LEFT + place * WIDTH, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return left + width * (scale(value) - scale(x0)) / ((scale(x1) - scale(x0)) or 1)

    def y(value: float) -> float:
        return TOP + height * (y1 - value) / ((y1 - y0) or 1)

    base = TOP + height
    drawn = [
        f'<text x="{left}" y="14">{title}</text>',
        f'<path d="M{left},{TOP}V{base}H{left + width}" stroke="#000" fill="none"/>',
    ]
    drawn += [f'<text x="{x(v):.0f}" y="{base + 16}" text-anchor="middle">{v:,.0f}</text>' for v in (x0, x1)]
    drawn += [f'<text x="{left - 4}" y="{y(v) + 4:.0f}" text-anchor="end">{v:.3g}</text>' for v in (y0, y1)]
    return x, y, drawn


if __name__ == "__main__":
    main()
