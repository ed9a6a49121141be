"""Dynamo's KV router knows from the engines' events what their prefix caches hold, and sends prompts to whoever has their beginning."""

import random

import pytest
from conftest import deployed
from servers import LANGUAGES, wait_until

NAMES = ["anna", "tom", "nina", "oscar"]


@pytest.fixture(scope="module", params=["mixed", "prefill"])
def deployment(request):
    decode = 1 if request.param == "prefill" else 0
    workers = ["go", "cpp"] if "cpp" in LANGUAGES else 2
    yield from deployed(**{request.param: workers}, decode=decode, kv_events=True, frontend_options=["--router-mode", "kv"])


def test_repeated_prefixes_go_to_their_holder(deployment):
    workers = deployment.of("mixed") or deployment.of("prefill")

    def computed_by(name, question):
        """The worker that has computed this prompt."""
        before = [worker.tokens() for worker in workers]
        prompt = f"{name} lives in paris. {name} likes the colour green. " * 12 + question
        deployment.client().completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0)
        [worker] = [w for w, count in zip(workers, before) if w.tokens() > count]
        return worker

    holders = {name: computed_by(name, "who?") for name in NAMES}
    order = random.Random(1)

    def all_go_there():
        """Four rounds over the prompts, in any order."""
        return all(computed_by(name, f"question {order.random()}") == holders[name] for _ in range(4) for name in order.sample(NAMES, len(NAMES)))

    wait_until("the router sends every prompt to its holder", all_go_there)
    hits = sum(worker.engine.metric("cleave_prefix_cache_hits_total") for worker in workers)
    assert hits > 0
