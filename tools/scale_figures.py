"""The figures, tables and numbers of docs/scale.md, from the files that `cleave-plan study` writes. tools/draw_figures.py draws
the figures, puts the tables into the page, and says which sentences the data no longer support."""

import csv
import math
import pathlib

IMAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "images"
COLOURS = {"whole prompts": "muted", "chunked": "orange", "apart": "green"}
NAMES = {"whole prompts": "mixed, whole prompts", "chunked": "mixed, chunked", "apart": "prefill and decode apart"}
KINDS = {"whole": "whole prompts", "chunked": "chunked", "apart": "apart"}
PAGE = IMAGES.parent / "scale.md"


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


def serving(figure_of, theme):
    """Goodput per GPU of the three ways to serve, relative to chunked mixed engines."""
    data = rows("serving")
    models = list(dict.fromkeys(row["model"] for row in data))
    figure = figure_of(880, 372, theme, "Goodput per GPU of mixed and separate engines relative to chunked ones, for two models and five workloads.")
    width, top, pitch = 310, 56, 56
    scale = width / (1.12 * max(float(row[kind]) / float(row["chunked"]) for row in data for kind in KINDS))
    for column, model in enumerate(models):
        left = 150 + column * (width + 50)
        figure.text(left, 24, model, size=13, anchor="start", bold=True)
        for i, row in enumerate(row for row in data if row["model"] == model):
            y = top + i * pitch
            if column == 0:
                figure.text(left - 10, y + 18, row["workload"], size=12, anchor="end")
                figure.text(left - 10, y + 33, f"{row['prompt']} in, {row['output']} out", "muted", 11, "end")
            for j, (kind, name) in enumerate(KINDS.items()):
                value = float(row[kind]) / float(row["chunked"])
                figure.rect(left, y + 14 * j, max(1, value * scale), 12, COLOURS[name], None, 2)
                figure.text(left + value * scale + 5, y + 14 * j + 10, f"{value:.2f}", "muted", 10.5, "start")
    legend(figure, 354, [(NAMES[name], COLOURS[name]) for name in KINDS.values()])
    return figure


def switching(figure_of, theme):
    """The load that eight engines carry over a day, by the division at its start."""
    data = rows("switching")
    figure = figure_of(880, 300, theme, "Load that eight engines carry over a day, with fixed pools and with role switches.")
    figure.text(60, 24, "Load carried over a day", size=13, anchor="start", bold=True)
    figure.text(60, 42, "1 is the load of the table; 95 % of the requests keep the limits", "muted", 11.5, "start")
    scale = 480 / (1.1 * max(float(row["highest_load"]) for row in data))
    starts = list(dict.fromkeys(row["prefill"] for row in data if row["prefill"]))
    for i, prefill in enumerate(starts):
        y = 62 + i * 36
        mine = [row for row in data if row["prefill"] == prefill]
        figure.text(190, y + 17, f"{prefill} prefill + {mine[0]['decode']} decode", "muted", 12, "end")
        for j, row in enumerate(mine):
            value = float(row["highest_load"])
            figure.rect(200, y + 14 * j, max(1, value * scale), 12, "bar" if row["fleet"] == "fixed" else "green", None, 2)
            figure.text(200 + value * scale + 5, y + 14 * j + 10, f"{value:.2f}", "muted", 10.5, "start")
    best = max(float(row["highest_load"]) for row in data if row["fleet"].startswith("mixed"))
    y = 62 + len(starts) * 36
    figure.text(190, y + 10, "8 mixed, best chunks", "muted", 12, "end")
    figure.rect(200, y, best * scale, 12, "orange", None, 2)
    figure.text(200 + best * scale + 5, y + 10, f"{best:.2f}", "muted", 10.5, "start")
    legend(figure, 284, [("fixed pools", "bar"), ("with role switches", "green"), (NAMES["chunked"], "orange")])
    return figure


FIGURES = {"scale-claims": claims, "scale-prefill": prefill, "scale-serving": serving, "scale-switching": switching}


def table(head, lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def claim_ratios():
    """Separate pools against chunked engines and against whole prompts: (devices, limit) to a pair."""
    rate = {(row["devices"], row["itl_limit_ms"], row["kind"]): float(row["tokens_per_second_per_device"]) for row in rows("claims")}
    return {(devices, limit): tuple(rate[devices, limit, "apart"] / rate[devices, limit, kind] for kind in ("chunked", "whole prompts"))
            for devices, limit, kind in rate if kind == "apart"}


def tables():
    """The tables of the page by name."""
    ratios = claim_ratios()
    limits = list(dict.fromkeys(limit for _, limit in ratios))
    claims_table = table(
        ["limit between tokens", "one node: apart against chunked", "against whole prompts", "two nodes: apart against chunked", "against whole prompts"],
        [[f"{limit} ms", *(f"{value:.2f}" for devices in ("8", "16") for value in ratios[devices, limit])] for limit in limits])
    serving_table = table(
        ["model", "workload", "tokens in / out", "limits", "whole prompts", "chunked", "apart", "best layout"],
        [[row["model"], row["workload"], f"{row['prompt']} / {row['output']}", f"{row['ttft_limit_ms']} ms, {row['itl_limit_ms']} ms",
          *(row[kind] for kind in KINDS), row[f"{best_kind(row)}_layout"]] for row in rows("serving")])
    switching_table = table(
        ["engines at the start", "within the limits", "TTFT p99", "ITL p99", "switches", "load carried"],
        [[f"{row['fleet']}, {row['prefill']} + {row['decode']}" if row["prefill"] else row["fleet"], f"{row['within_limits']} %",
          f"{row['ttft_p99_ms']} ms", f"{row['itl_p99_ms']} ms", row["switches"], row["highest_load"]] for row in rows("switching")])
    return {"claims": claims_table, "serving": serving_table, "switching": switching_table}


def best_kind(row):
    return max(KINDS, key=lambda kind: float(row[kind]))


def page(text):
    """The page with the tables of today's data, each between a comment with its name and an empty comment."""
    for name, body in tables().items():
        begin, end = f"<!-- from scale-{name}.csv -->\n", "\n<!-- -->"
        before, rest = text.split(begin)
        text = before + begin + body + end + rest.split(end, 1)[1]
    begin, end = "<!-- from scale-recommend.txt -->\n\n", "\n\n<!-- -->"
    before, rest = text.split(begin)
    lines = (IMAGES / "scale-recommend.txt").read_text().strip().split("\n")
    return before + begin + "\n".join(f"    {line}".rstrip() for line in lines) + end + rest.split(end, 1)[1]


def missing(text):
    """Sentences that the data support and the page does not have."""
    words = " ".join(text.split())
    return [fact for fact in facts() if fact not in words]


def facts():
    """Parts of sentences of the page with the numbers that the data give them."""
    return [*prefill_facts(), *claim_facts(), *serving_facts(), *switching_facts()]


def prefill_facts():
    data = rows("prefill")
    chosen = {row["degree"]: row for row in data if row["tokens"] == row["saturating_tokens"]}
    longest = {row["degree"]: row for row in data if row["tokens"] == "8192"}
    times = [float(longest[degree]["step_ms"]) / float(row["step_ms"]) for degree, row in chosen.items()]
    column = "tokens_per_second_per_device"
    gains = [max(float(row[column]) for row in data if row["degree"] == degree) / float(chosen[degree][column]) - 1 for degree in chosen]
    yield f"gives {chosen['2']['tokens']} tokens at TP2, {chosen['4']['tokens']} at TP4 and {chosen['8']['tokens']} at TP8"
    yield f"Longer steps gain at most {100 * max(gains):.0f} %"
    yield f"a step of 8192 tokens takes {min(times):.0f} to {max(times):.0f} times as long"


def claim_facts():
    ratios = claim_ratios()
    one, two = ({float(limit): pair for (n, limit), pair in ratios.items() if n == devices} for devices in ("8", "16"))
    spread = lambda values: f"{min(values):.2f} to {max(values):.2f}"
    yield f"for limits of 20 ms to 33 ms ({spread([one[limit][1] for limit in (20, 25, 33)])} times)"
    yield f"at 12 ms ({one[12][0]:.2f} times); from 15 ms on it is {spread([pair[0] for limit, pair in one.items() if limit >= 15])} times"
    assert [limit for limit, pair in two.items() if pair[1] > 2] == [12, 15]
    yield f"at 12 ms and 15 ms between tokens, and only against whole prompts ({two[12][1]:.2f} and {two[15][1]:.2f} times)"
    yield f"Against chunks the best is {max(pair[0] for pair in two.values()):.2f} times"
    rate = {(row["devices"], row["itl_limit_ms"], row["kind"]): float(row["tokens_per_second_per_device"]) for row in rows("claims")}
    apart, chunked = ([rate[devices, "20", kind] for devices in ("8", "16")] for kind in ("apart", "chunked"))
    yield f"at 20 ms from {apart[0]:.0f} to {apart[1]:.0f} tokens/s/GPU, and mixed engines with chunks from {chunked[0]:.0f} to {chunked[1]:.0f}"
    yield f"chunks carry {1 / max(pair[0] for side in (one, two) for limit, pair in side.items() if limit >= 50):.2f} to {1 / min(pair[0] for side in (one, two) for limit, pair in side.items() if limit >= 50):.2f} times as much"


def serving_facts():
    ratio = {(row["model"], row["workload"]): [float(row[kind]) / float(row["chunked"]) for kind in ("whole", "apart")] for row in rows("serving")}
    whole, apart = ([pair[i] for pair in ratio.values()] for i in (0, 1))
    assert max(apart) < 1.05
    yield f"Separate pools carry {min(apart):.2f} to {max(apart):.2f} times"
    yield f"whole prompts {min(whole):.2f} to {max(whole):.2f} times"
    reasoning = [pair[1] for (_, workload), pair in ratio.items() if workload == "reasoning"]
    yield f"({reasoning[0]:.2f} and {reasoning[1]:.2f} times)"


def switching_facts():
    data = rows("switching")
    loads = {fleet: [float(row["highest_load"]) for row in data if row["fleet"].startswith(fleet)] for fleet in ("fixed", "switching", "mixed")}
    fixed, switched, mixed = (max(values) for values in loads.values())
    yield f"{switched / fixed:.2f} times the load of the best fixed division"
    yield f"{min(loads['switching']) / min(loads['fixed']):.1f} times that of the worst"
    yield f"carry {mixed / switched:.2f} times as much as separate pools with switches"
