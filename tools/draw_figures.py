#!/usr/bin/env python3
"""Draws the figures of README.md and docs/scale.md into docs/images, each for a light and for a dark page, and puts the tables
of docs/scale.md into it.

    tools/draw_figures.py            writes the SVG files and the page
    tools/draw_figures.py --check    fails where a committed file differs from what would be written

Needs Python 3.9 and its standard library.
"""

import csv
import functools
import pathlib
import sys

import scale_figures

IMAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"

# The colours of GitHub's own pages, so that a figure looks at home in either theme.
THEMES = {
    "light": {
        "text": "#1f2328", "muted": "#59636e", "line": "#d1d9e0", "panel": "#f6f8fa", "card": "#ffffff", "bar": "#afb8c1",
        "blue": "#0969da", "blue_fill": "#ddf4ff", "green": "#1a7f37", "green_fill": "#dafbe1",
        "orange": "#bc4c00", "orange_fill": "#fff1e5",
    },
    "dark": {
        "text": "#f0f6fc", "muted": "#9198a1", "line": "#3d444d", "panel": "#151b23", "card": "#0d1117", "bar": "#4d5560",
        "blue": "#4493f8", "blue_fill": "#11233d", "green": "#3fb950", "green_fill": "#12261e",
        "orange": "#f0883e", "orange_fill": "#2b1d12",
    },
}


class Figure:
    """An SVG document under construction; coordinates are pixels from the top left."""

    def __init__(self, width, height, theme, title):
        self.colour = THEMES[theme]
        self.size = (width, height)
        self.title = title
        self.parts = []

    def rect(self, x, y, width, height, fill="card", stroke="line", radius=6, dashed=False, opacity=1.0):
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        edge = f' stroke="{self.colour[stroke]}"{dash}' if stroke else ""
        edge += f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{self.colour[fill]}"{edge}/>')

    def text(self, x, y, text, colour="text", size=13, anchor="middle", bold=False, mono=False):
        weight = ' font-weight="600"' if bold else ""
        family = ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"' if mono else ""
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{self.colour[colour]}"{weight}{family}>{text}</text>')

    def heading(self, x, y, title, rest):
        title, rest = (part.replace("&", "&amp;") for part in (title, rest))
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="15" fill="{self.colour["text"]}"><tspan font-weight="600">{title}</tspan>'
                          f'<tspan dx="10" font-size="12.5" fill="{self.colour["muted"]}">{rest}</tspan></text>')

    def line(self, x1, y1, x2, y2, colour="line", width=1.0, dashed=False):
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{self.colour[colour]}" stroke-width="{width:g}"{dash}/>')

    def arrow(self, x1, y1, x2, y2, colour, dashed=False):
        """A horizontal or vertical arrow with its head at (x2, y2)."""
        dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
        self.line(x1, y1, x2 - 7 * dx, y2 - 7 * dy, colour, 1.75, dashed)
        head = [(x2, y2), (x2 - 8 * dx + 4.5 * dy, y2 - 8 * dy + 4.5 * dx), (x2 - 8 * dx - 4.5 * dy, y2 - 8 * dy - 4.5 * dx)]
        points = " ".join(f"{x:g},{y:g}" for x, y in head)
        self.parts.append(f'<polygon points="{points}" fill="{self.colour[colour]}"/>')

    def blocks(self, x, y, columns, kinds, cell=15):
        """A row of KV blocks: p prefix, h handed over, any other character free."""
        for i, kind in enumerate(kinds):
            left, top = x + (i % columns) * (cell + 3), y + (i // columns) * (cell + 3)
            fill, stroke = {"h": ("orange_fill", "orange"), "p": ("panel", "muted")}.get(kind, ("card", "line"))
            self.rect(left, top, cell, cell, fill, stroke, 2)

    def svg(self):
        width, height = self.size
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
                f'font-family="{FONT}" role="img">\n<title>{self.title}</title>\n')
        return head + "\n".join(self.parts) + "\n</svg>\n"


def engine(figure, x, y, width, role):
    colour = {"prefill": "blue", "decode": "green"}[role]
    figure.rect(x, y, width, 46, f"{colour}_fill", colour)
    figure.text(x + width / 2, y + 20, f"{role} engine", colour, 13, bold=True)
    figure.text(x + width / 2, y + 37, {"prefill": "computes prompts", "decode": "generates tokens"}[role], "muted", 11.5)


def set_ups(theme):
    """One process with two engines over one cache, and two processes with a ticket between them."""
    figure = Figure(880, 322, theme, "Left: one process, a prefill and a decode engine over one KV cache, a handle passes between them. "
                    "Right: two processes, a ticket goes over the host's own RPC and the decode process pulls the KV.")

    figure.heading(12, 20, "One process", "two engines, one copy of everything")
    figure.rect(8, 34, 352, 280, "panel", radius=10)
    figure.rect(24, 48, 320, 32, "card", "line", dashed=True)
    figure.text(184, 68, "your server: HTTP, auth, routing, metrics", "muted", 12.5)
    engine(figure, 24, 98, 120, "prefill")
    engine(figure, 224, 98, 120, "decode")
    figure.arrow(148, 121, 220, 121, "orange")
    figure.text(184, 113, "KV handle", "orange", 12, bold=True)
    figure.text(184, 138, "0 bytes", "orange", 11.5)
    for x in (84, 284):
        figure.arrow(x, 148, x, 168, "muted")
    figure.rect(24, 172, 320, 72)
    figure.text(36, 192, "KV cache", size=13, anchor="start", bold=True)
    figure.text(332, 192, "one pool of blocks", "muted", 12, "end")
    figure.blocks(36, 202, 17, "pphhhhh....ppp..." + ".hhh......pp.....")
    figure.rect(24, 256, 320, 42)
    figure.text(36, 282, "weights", size=13, anchor="start", bold=True)
    figure.text(332, 282, "loaded once", "muted", 12, "end")

    left = 383
    figure.heading(left + 4, 20, "Two processes or hosts", "scaled and restarted on their own")
    for x, role, kinds in ((left, "prefill", "pphhhhh." + ".hhh...."), (left + 312, "decode", "..hhhhh." + "hhh..pp.")):
        figure.rect(x, 34, 184, 280, "panel", radius=10)
        figure.rect(x + 10, 48, 164, 32, "card", "line", dashed=True)
        figure.text(x + 92, 68, f"your {role} worker", "muted", 12.5)
        engine(figure, x + 10, 98, 164, role)
        figure.arrow(x + 92, 148, x + 92, 168, "muted")
        figure.rect(x + 10, 172, 164, 72)
        figure.text(x + 20, 192, "KV cache", size=13, anchor="start", bold=True)
        figure.blocks(x + 20, 202, 8, kinds)
        figure.rect(x + 10, 256, 164, 42)
        figure.text(x + 20, 282, "weights", size=13, anchor="start", bold=True)
    middle = left + 248
    figure.arrow(left + 188, 64, left + 308, 64, "orange", dashed=True)
    figure.text(middle, 56, "ticket", "orange", 12.5, bold=True)
    figure.text(middle, 82, "over your own RPC", "muted", 11.5)
    figure.arrow(left + 188, 217, left + 308, 217, "orange")
    figure.text(middle, 209, "KV", "orange", 12.5, bold=True)
    figure.text(middle, 235, "shared memory,", "muted", 11.5)
    figure.text(middle, 250, "TCP or NIXL", "muted", 11.5)
    figure.text(middle, 272, "pulled while the", "muted", 11.5)
    figure.text(middle, 287, "prompt is computed", "muted", 11.5)
    return figure


def spread(text):
    """The ends of "7.5-7.8", or of "5.7"."""
    ends = [float(end) for end in text.split("-")]
    return ends[0], ends[-1]


def peers(theme):
    """cleave beside other engines on a CPU, a small chart for each measure, each with a scale of its own."""
    rows = [row for row in csv.reader((IMAGES / "cpu-peers.csv").read_text().splitlines()) if not row[0].startswith("#")]
    names, measures = rows[0][1:], rows[1:]
    left, width, gap = 136, 136, 14
    figure = Figure(880, 204, theme, "Tokens per second of cleave and three other engines in prefill and decode.")
    top, pitch = 54, 32
    for i, name in enumerate(names):
        figure.text(left - 10, top + i * pitch + 15, name, "text" if i == 0 else "muted", 12.5, "end", bold=i == 0)
    for column, measure in enumerate(measures):
        x = left + column * (width + gap)
        values = [spread(value) if value else None for value in measure[1:]]
        scale = (width - 58) / max(high for low, high in filter(None, values))
        kind, detail = measure[0].split(", ")
        figure.text(x, 20, kind, size=13, anchor="start", bold=True)
        figure.text(x, 38, detail, "muted", 12, "start")
        figure.line(x, top - 6, x, top + len(names) * pitch - 8, "line")
        for i, value in enumerate(values):
            y = top + i * pitch
            if value is None:
                figure.text(x + 6, y + 15, "not measured", "muted", 11, "start")
                continue
            low, high = value
            end = x + high * scale
            fill = "blue" if i == 0 else "bar"
            figure.rect(x + 0.5, y + 2, high * scale, 17, fill, None, 2, opacity=0.45)
            figure.rect(x + 0.5, y + 2, low * scale, 17, fill, None, 2)
            label = f"{low:g}" if low == high else f"{low:g}\u2013{high:g}"
            figure.text(end + 5, y + 15, label, "text" if i == 0 else "muted", 11.5, "start", bold=i == 0)
    figure.text(left, 196, "Tokens per second; longer is better. Solid: slowest run, pale: fastest run. Each column has its own scale.", "muted", 11.5, "start")
    return figure


def main():
    stale = []
    scale = {name: functools.partial(draw, Figure) for name, draw in scale_figures.FIGURES.items()}
    for name, draw in ({"set-ups": set_ups, "cpu-peers": peers} | scale).items():
        for theme in THEMES:
            path = IMAGES / f"{name}-{theme}.svg"
            drawn = draw(theme).svg()
            if sys.argv[1:] == ["--check"]:
                if not path.exists() or path.read_text() != drawn:
                    stale.append(path.name)
            else:
                path.write_text(drawn)
    text = scale_figures.PAGE.read_text()
    current = scale_figures.page(text)
    if sys.argv[1:] != ["--check"]:
        scale_figures.PAGE.write_text(current)
    elif current != text:
        stale.append(scale_figures.PAGE.name)
    if stale:
        sys.exit(f"tools/draw_figures.py: {', '.join(stale)}: out of date; run it without --check")
    if missing := scale_figures.missing(current):
        sys.exit("tools/draw_figures.py: docs/scale.md has to say, after its data: " + "; ".join(missing))


if __name__ == "__main__":
    main()
