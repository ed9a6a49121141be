"""Workers on a GPU, which is a simulated one: a driver that runs the kernels' sources on the CPU."""

import os

import pytest
from conftest import ANSWERS, ask, client_of
from servers import LANGUAGES, SMALL, Cluster

DRIVER = os.environ.get("CLEAVE_SIMULATED_CUDA")

pytestmark = pytest.mark.skipif(not DRIVER, reason="no simulated driver")

# A step length of their own: to measure the best takes a simulated device long.
ON_DEVICE = [*SMALL, "--device", "0", "--max-batch-tokens", "512"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_workers_on_one_device(language, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", DRIVER)
    cluster = Cluster(language, [language], [LANGUAGES[-1]], options=ON_DEVICE)
    for thing, answer in ANSWERS.items():
        reply = client_of(cluster).chat.completions.create(model="tiny", messages=ask(thing), temperature=0)
        assert reply.choices[0].message.content.strip() == answer
    prefill, decode = cluster.of("prefill")[0], cluster.of("decode")[0]
    assert "CUDA memory" in decode.log(), decode.log()
    assert prefill.metric("cleave_prompt_tokens_total") > 0 and decode.metric("cleave_generation_tokens_total") > 0
    assert prefill.metric("cleave_multiprocessors") > 0, "it is on a device"
    cluster.check_quiescent()
    cluster.stop()
