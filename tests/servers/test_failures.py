"""Workers that die, stop, leave and join, while 32 clients stream."""

import signal
import threading
import time

import openai
import pytest
from conftest import client_of
from servers import get, wait_until

STREAMS = 32


class Streams:
    """Seeded generations that run at once, each in a thread of its own."""

    def __init__(self, server, tokens=440):
        self.client = client_of(server)
        self.model = self.client.models.list().data[0].id
        self.tokens = tokens
        self.texts = [""] * STREAMS
        self.failures = [None] * STREAMS
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(STREAMS)]
        for thread in self.threads:
            thread.start()

    def run(self, i):
        try:
            stream = self.client.completions.create(model=self.model, prompt=f"tom {i} likes the colour green. the old farmer", temperature=0.9, seed=i,
                                                    max_tokens=self.tokens, stream=True, extra_body={"ignore_eos": True})
            for chunk in stream:
                self.texts[i] += chunk.choices[0].text
        except openai.APIError as error:
            self.failures[i] = error

    def wait_until_most_run(self, cluster):
        """In the workers: what clients have seen says little of that."""

        def most():
            alive = [worker for worker in cluster.of("decode") if worker.process.poll() is None]
            return sum(worker.metric("cleave_num_requests_running") for worker in alive) >= STREAMS * 2 / 3

        wait_until("most streams run", most)

    def finish(self, seconds=300):
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), "a stream hangs"
        return self.texts, self.failures


@pytest.fixture(scope="module")
def wanted():
    """Texts of undisturbed streams, by number of tokens."""
    known = {}

    def of(cluster, tokens=440):
        if tokens not in known:
            texts, failures = Streams(cluster, tokens).finish()
            assert not any(failures), failures
            known[tokens] = texts
        return known[tokens]

    return of


def works(cluster):
    for seed in (1, 2):
        options = {"prompt": f"{seed} anna lives in paris. " * 6, "temperature": 0.9, "seed": seed, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
        model = client_of(cluster).models.list().data[0].id
        texts = {client_of(cluster).completions.create(model=model, **options).choices[0].text for _ in range(2)}
        assert len(texts) == 1


def busy_decode_worker(cluster):
    return max(cluster.of("decode"), key=lambda worker: worker.metric("cleave_num_requests_running"))


def test_a_killed_decode_worker(cluster, wanted):
    want = wanted(cluster)
    streams = Streams(cluster)
    streams.wait_until_most_run(cluster)
    busy_decode_worker(cluster).kill()
    texts, failures = streams.finish()
    assert not any(failures), failures
    assert texts == want, "moved streams go on as if nothing had happened"
    assert cluster.front.metric("cleave_front_moved_total") > 0
    works(cluster)
    assert len(cluster.listed("decode", "up")) == 1
    # The last one: what runs ends with an error, new requests are refused, and nothing hangs.
    streams = Streams(cluster)
    streams.wait_until_most_run(cluster)
    [last] = [worker for worker in cluster.of("decode") if worker.process.poll() is None]
    last.kill()
    _, failures = streams.finish()
    assert all(failures), "no stream can have ended well"
    with pytest.raises(openai.InternalServerError) as caught:
        client_of(cluster).completions.create(model=streams.model, prompt="the", max_tokens=1)
    assert caught.value.status_code == 503
    assert get(cluster.url + "/health")[0] == 503
    cluster.add("decode", cluster.front.language)
    cluster.wait_for(1, 1)
    works(cluster)
    cluster.check_quiescent()


def test_a_stopped_decode_worker(cluster, wanted):
    want = wanted(cluster)
    streams = Streams(cluster)
    streams.wait_until_most_run(cluster)
    stopped = busy_decode_worker(cluster)
    stopped.signal(signal.SIGSTOP)
    texts, failures = streams.finish()
    assert not any(failures), failures
    assert texts == want
    works(cluster)
    assert [w["url"] for w in cluster.listed("decode", "dead")] == [stopped.url]
    stopped.signal(signal.SIGCONT)
    cluster.wait_for(1, 2)
    works(cluster)
    cluster.check_quiescent()


def test_a_killed_prefill_worker(cluster, wanted):
    want = wanted(cluster)
    streams = Streams(cluster)
    cluster.of("prefill")[0].kill()
    texts, failures = streams.finish()
    assert not any(failures), failures
    assert texts == want
    works(cluster)
    assert cluster.listed("prefill") == []
    fresh = cluster.add("prefill", cluster.front.language)
    cluster.wait_for(1, 2)
    works(cluster)
    assert fresh.metric("cleave_prompt_tokens_total") > 0, "the new one prefills"
    cluster.check_quiescent()


def test_a_worker_that_leaves_finishes_first(cluster, wanted):
    want = wanted(cluster, 200)
    streams = Streams(cluster, 200)
    wait_until("some run, others are on their way", lambda: sum(w["requests"] for w in cluster.listed("decode")) >= 8)
    leaving = busy_decode_worker(cluster)
    leaving.signal(signal.SIGTERM)
    wait_until("it left", lambda: len(cluster.listed("decode")) == 1)
    works(cluster)
    texts, failures = streams.finish()
    assert not any(failures) and texts == want
    assert leaving.process.wait(60) == 0
    assert cluster.front.metric("cleave_front_moved_total") == 0
    assert leaving.url not in [w["url"] for w in cluster.listed() + cluster.listed(state="dead")]


def test_a_worker_that_joins_gets_its_share(cluster):
    fresh = cluster.add("decode", cluster.front.language)
    cluster.wait_for(1, 3)
    streams = Streams(cluster, 60)
    streams.finish()
    assert fresh.metric("cleave_generation_tokens_total") > 60 * STREAMS / 10


def test_a_front_that_is_restarted(cluster):
    before = cluster.front
    before.kill()
    cluster.start_front(before.language, "--listen", before.url.removeprefix("http://"), "--workers-listen", before.inside.removeprefix("http://"))
    assert (cluster.front.url, cluster.front.inside) == (before.url, before.inside)
    cluster.wait_for(1, 2)
    works(cluster)


def test_clients_that_go_away(cluster):
    client = client_of(cluster)
    model = client.models.list().data[0].id
    for i in range(40):
        stream = client.completions.create(model=model, prompt=f"tom {i} likes the colour green. " * 12, max_tokens=300, stream=True,
                                           extra_body={"ignore_eos": True})
        for _, _ in zip(range(i % 4), stream):
            pass
        stream.close()
    for worker in cluster.workers:
        wait_until("nothing runs", lambda worker=worker: worker.metric("cleave_num_requests_running") == 0)
    generated = sum(worker.metric("cleave_generation_tokens_total") for worker in cluster.of("decode"))
    assert generated < 40 * 300 / 2, "what a client left was cancelled"
    cluster.check_quiescent()
    works(cluster)
