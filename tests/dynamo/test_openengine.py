"""OpenEngine v1 through Dynamo's sidecar for TensorRT-LLM, the one released client of that protocol."""

import pytest
from conftest import ANSWERS, ask, deployed
from test_deployments import CHATS, client_of


@pytest.fixture(scope="module", params=[{"mixed": 1}, {"prefill": 1, "decode": 1}], ids=["mixed", "1P+1D"])
def deployment(request):
    yield from deployed(**request.param, openengine=True)


def test_chats(deployment, alone):
    for more in CHATS:
        for thing in ANSWERS:
            want = client_of(alone).chat.completions.create(model="tiny", messages=ask(thing), **more)
            got = deployment.client().chat.completions.create(model="tiny", messages=ask(thing), **more)
            assert got.choices[0].message.content == want.choices[0].message.content, more
    for worker in deployment.of("decode"):
        assert worker.engine.metric("cleave_kv_imports_total") > 0 and worker.engine.metric("cleave_requests_recomputed_total") == 0
