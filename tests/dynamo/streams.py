"""Seeded generations that run at once, each in a thread of its own."""

import threading
import time

import openai
from servers import wait_until


class Streams:
    def __init__(self, client, model, count=8, tokens=300):
        self.client, self.model, self.tokens = client, model, tokens
        self.texts, self.failures = [""] * count, [None] * count
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, i):
        try:
            stream = self.client.completions.create(model=self.model, prompt=f"tom {i} likes the colour green. the old farmer", temperature=0.9, seed=i + 1,
                                                    max_tokens=self.tokens, stream=True, extra_body={"ignore_eos": True})
            for chunk in stream:
                for choice in chunk.choices:
                    self.texts[i] += choice.text
        except openai.APIError as error:
            self.failures[i] = error

    def wait_until_they_run_on(self, *workers):
        """Each of these workers is in the middle of streams, and clients have text."""
        wait_until("the streams run", lambda: all(self.texts) and all(worker.running() for worker in workers))

    def finish(self, seconds=120):
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), "a stream hangs"
        return self.texts, self.failures
