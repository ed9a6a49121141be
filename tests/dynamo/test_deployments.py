"""Mixed, prefill and decode workers under Dynamo: answers are those of the library alone, whoever computed them."""

import concurrent.futures

import openai
import pytest
from conftest import ANSWERS, ask, deployed
from servers import LANGUAGES, MODEL
from tokenizers import Tokenizer

SETUPS = {"mixed": {"mixed": 1}, "1P+1D": {"prefill": 1, "decode": 1}, "2P+2D": {"prefill": 2, "decode": 2}}
if "cpp" in LANGUAGES:
    SETUPS = {"mixed": {"mixed": 1}, "C++ mixed": {"mixed": ["cpp"]}, "1P+1D, Go to C++": {"prefill": 1, "decode": ["cpp"]},
              "1P+1D, C++ to Go": {"prefill": ["cpp"], "decode": 1}, "2P+2D": {"prefill": ["go", "cpp"], "decode": ["go", "cpp"]}}


@pytest.fixture(scope="module", params=SETUPS)
def deployment(request):
    yield from deployed(**SETUPS[request.param])


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


CHATS = [{"temperature": 0}, {"temperature": 0.9, "seed": 7}, {"temperature": 0.7, "seed": 1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
         {"temperature": 0, "stop": ["y"]}, {"temperature": 1.2, "top_p": 0.9, "seed": 11, "max_completion_tokens": 5},
         {"temperature": 0, "max_completion_tokens": 1}, {"temperature": 0.8, "seed": 5, "extra_body": {"top_k": 5, "min_tokens": 12}}]


@pytest.mark.parametrize("more", CHATS, ids=str)
def test_chats(deployment, alone, more):
    for thing in ANSWERS:
        want = client_of(alone).chat.completions.create(model="tiny", messages=ask(thing), **more)
        got = deployment.client().chat.completions.create(model="tiny", messages=ask(thing), **more)
        assert got.choices[0].message.content == want.choices[0].message.content
        assert got.choices[0].finish_reason == want.choices[0].finish_reason
        assert got.usage.prompt_tokens == want.usage.prompt_tokens and got.usage.completion_tokens == want.usage.completion_tokens
        stream = deployment.client().chat.completions.create(model="tiny", messages=ask(thing), stream=True, **more)
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == want.choices[0].message.content


def sixteen_texts(*clients):
    """Sixteen seeded streams at once, from each client. Prompts are token ids, because Dynamo's frontend adds no
    beginning-of-sequence token to text."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def text(server_client, seed):
        prompt = tokenizer.encode(f"tom {seed} likes the colour green. the old farmer").ids
        stream = server_client.completions.create(model="tiny", prompt=prompt, temperature=0.9, seed=seed,
                                                  max_tokens=60, stream=True, extra_body={"ignore_eos": True})
        return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return [list(pool.map(lambda seed: text(client, seed), range(1, 17))) for client in clients]


def test_many_at_once(deployment, alone):
    """Batches, and with several workers who computes what, differ every time. The texts do not."""
    want, got = sixteen_texts(client_of(alone), deployment.client())
    assert got == want and all(want)


def test_work_is_shared_out(deployment):
    """Every worker has worked, and decode workers have had their KV from prefill workers."""
    sixteen_texts(deployment.client())
    assert all(worker.tokens() > 0 for worker in deployment.workers)
    for worker in deployment.workers:
        assert (worker.engine.metric("cleave_kv_imports_total") > 0) == (worker.role == "decode")
        assert worker.engine.metric("cleave_requests_recomputed_total") == 0
