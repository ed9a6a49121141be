"""The figures of docs/scale.md, from the CSV files that `cleave-plan study` writes. tools/draw_figures.py draws them."""

import csv
import math
import pathlib

IMAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
COLOURS = {"whole prompts": "muted", "chunked": "orange", "apart": "green"}
NAMES = {"whole prompts": "mixed, whole prompts", "chunked": "mixed, chunked", "apart": "prefill and decode apart"}


def rows(name):
    with open(IMAGES / f"scale-{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


class Panel:
    """Axes of a line chart. `xs` are the marks of the x axis, which is logarithmic; the y axis goes from 0 to `most`."""

    def __init__(self, figure, left, title, xs, most, unit):
        self.figure, self.left, self.top, self.width, self.height = figure, left, 56, 330, 190
        self.low, self.high, self.most = math.log(min(xs)), math.log(max(xs)), most
        figure.text(left, 24, title, size=13, anchor="start", bold=True)
        figure.text(left, 42, unit, "muted", 11.5, "start")
        step = 10 ** math.floor(math.log10(most / 2))
        step *= next(factor for factor in (1, 2, 5) if most / (step * factor) <= 5)
        for i in range(int(most / step) + 1):
            figure.line(left, self.y(i * step), left + self.width, self.y(i * step))
            figure.text(left - 6, self.y(i * step) + 4, f"{i * step:g}", "muted", 11, "end")
        for x in xs:
            figure.text(self.x(x), self.top + self.height + 18, f"{x:g}", "muted", 11)

    def x(self, value):
        return self.left + self.width * (math.log(value) - self.low) / (self.high - self.low)

    def y(self, value):
        return self.top + self.height * (1 - value / self.most)

    def curve(self, points, colour):
        for (x1, y1), (x2, y2) in zip(points, points[1:]):
            self.figure.line(self.x(x1), self.y(y1), self.x(x2), self.y(y2), colour, 2)
        for x, y in points:
            self.dot(x, y, colour)

    def dot(self, x, y, colour, size=5):
        self.figure.rect(self.x(x) - size / 2, self.y(y) - size / 2, size, size, colour, None, size / 2)


def legend(figure, y, entries):
    x = 60
    for text, colour in entries:
        figure.rect(x, y - 9, 10, 10, colour, None, 2)
        figure.text(x + 16, y, text, "muted", 12, "start")
        x += 40 + 7 * len(text)


def claims(figure_of, theme):
    """Tokens per second and GPU over the speed that a user sees, on one node and on two."""
    data = rows("claims")
    figure = figure_of(880, 318, theme, "Tokens per second and GPU of mixed and separate engines, over tokens per second for each user.")
    most = 1.1 * max(float(row["tokens_per_second_per_device"]) for row in data)
    speeds = sorted({round(1000 / float(row["itl_limit_ms"])) for row in data})
    for devices, left, title in (("8", 60, "One node, 8 H100"), ("16", 490, "Two nodes, 16 H100")):
        panel = Panel(figure, left, title, speeds, most, "tokens/s/GPU, over tokens/s that each user gets at least")
        for kind, colour in COLOURS.items():
            points = [(1000 / float(row["itl_limit_ms"]), float(row["tokens_per_second_per_device"]))
                      for row in data if row["devices"] == devices and row["kind"] == kind]
            panel.curve(sorted(points), colour)
    legend(figure, 298, [(NAMES[kind], colour) for kind, colour in COLOURS.items()])
    return figure


def prefill(figure_of, theme):
    """Rate and duration of prefill steps over their tokens."""
    data = rows("prefill")
    figure = figure_of(880, 318, theme, "Rate of prefill and duration of its steps over the tokens of a step.")
    degrees = {"2": "blue", "4": "green", "8": "orange"}
    tokens = sorted({int(row["tokens"]) for row in data})
    for column, left, title, unit in (("tokens_per_second_per_device", 70, "Rate of prefill", "tokens/s/GPU, over tokens in a step"),
                                      ("step_ms", 500, "Duration of a step", "ms, over tokens in a step")):
        panel = Panel(figure, left, title, tokens, 1.1 * max(float(row[column]) for row in data), unit)
        for degree, colour in degrees.items():
            mine = [row for row in data if row["degree"] == degree]
            panel.curve([(int(row["tokens"]), float(row[column])) for row in mine], colour)
            for row in mine:
                if row["tokens"] == row["saturating_tokens"]:
                    panel.dot(int(row["tokens"]), float(row[column]), colour, 11)
    legend(figure, 298, [(f"TP{degree}", colour) for degree, colour in degrees.items()] + [("large dot: the shortest step within 5 % of the best rate", "muted")])
    return figure


FIGURES = {"scale-claims": claims, "scale-prefill": prefill}
