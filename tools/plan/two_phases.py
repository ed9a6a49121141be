#!/usr/bin/env python3
"""Writes the trace behind the section "Role switches against fixed pools" of docs/scale.md to standard output, in Azure's format."""

import datetime
import random

PHASE_SECONDS, PHASES, SPREAD = 120, 6, 0.3
# Requests per second, prompt tokens and answer tokens: clients read long documents, or write long answers.
READING, WRITING = (22, 8000, 100), (34, 500, 800)

random.seed(1)
rows = []
for phase in range(PHASES):
    rate, prompt, output = WRITING if phase % 2 else READING
    seconds = phase * PHASE_SECONDS
    while seconds < (phase + 1) * PHASE_SECONDS:
        seconds += random.expovariate(rate)
        time = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=seconds)
        lengths = [int(mean * (1 + SPREAD * (2 * random.random() - 1))) for mean in (prompt, output)]
        rows.append((time.strftime("%Y-%m-%d %H:%M:%S.%f"), *lengths))
print("TIMESTAMP,ContextTokens,GeneratedTokens")
for row in sorted(rows):
    print("%s,%d,%d" % row)
