"""Limits of Dynamo's sidecar that docs/dynamo.md names. When a test here fails, a new sidecar can do more."""

import openai
import pytest
from conftest import ANSWERS, ask, deployed


@pytest.fixture(scope="module")
def deployment():
    yield from deployed(mixed=1)


@pytest.mark.parametrize("more", [{"n": 2}, {"extra_body": {"top_k": -1}}, {"extra_body": {"min_p": 0}}], ids=str)
def test_it_refuses(deployment, more):
    with pytest.raises(openai.BadRequestError):
        deployment.client().chat.completions.create(model="tiny", messages=ask("red box"), **more)


def test_min_p(deployment):
    """One that is not 0 reaches the engine: only the most likely token is left."""
    got = deployment.client().chat.completions.create(model="tiny", messages=ask("red box"), temperature=1.5, seed=3, extra_body={"min_p": 1.0})
    assert got.choices[0].message.content == ANSWERS["red box"]


def test_it_refuses_kv_transfer_params(deployment):
    with pytest.raises(openai.APIStatusError):
        deployment.client().chat.completions.create(model="tiny", messages=ask("red box"), extra_body={"kv_transfer_params": {"do_remote_decode": True}})


def test_the_context_ends_an_answer(deployment):
    got = deployment.client().completions.create(model="tiny", prompt="the old farmer", max_tokens=100_000, extra_body={"ignore_eos": True})
    assert got.choices[0].finish_reason == "length"


def test_it_ignores(deployment):
    bias = {"logit_bias": {str(token): -100 for token in range(3, 700)}}
    got = deployment.client().chat.completions.create(model="tiny", messages=ask("red box"), temperature=0, logprobs=True, **bias)
    assert got.choices[0].message.content == ANSWERS["red box"]
    assert not got.choices[0].logprobs or not got.choices[0].logprobs.content
