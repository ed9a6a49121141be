"""A router's index of a server's prefix cache, kept from the events that the server publishes."""

import struct

import msgspec
import zmq

BLOCK = 16
TOPIC = b"kv-events"
LAST = 2**64 - 1

CLEARED = {"type": "AllBlocksCleared"}
STORED = ["type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "group_idx"]


def socket_to(endpoint, kind, **options):
    """A connected ZeroMQ socket, whose reads fail after a minute."""
    socket = zmq.Context.instance().socket(kind)
    for name, value in {"LINGER": 0, "RCVTIMEO": 60_000, **options}.items():
        socket.setsockopt(getattr(zmq, name), value)
    if kind == zmq.SUB:
        socket.subscribe(TOPIC[:2])
    socket.connect(endpoint)
    return socket


class Router:
    """A subscriber to one server."""

    def __init__(self, endpoint=None, **options):
        self.socket = endpoint and socket_to(endpoint, zmq.SUB, **options)
        self.blocks = {}  # hash: parent, tokens, salt
        self.last = None  # number of the last message
        self.missing = None  # number of the first message that did not come
        self.events = []  # of all messages

    def read(self):
        """Takes the next message, unless some are missing before it."""
        topic, number, payload = self.socket.recv_multipart()
        assert topic == TOPIC
        [number] = struct.unpack(">Q", number)
        if self.last is not None and number != self.last + 1:
            assert number > self.last and self.missing is None
            self.missing = self.last + 1
        else:
            self.take(number, payload)

    def read_again(self, endpoint, number):
        """Takes the messages from a number on that the server still has."""
        for number, payload in replay(endpoint, number):
            self.take(number, payload)

    def read_until(self, holds):
        while not holds():
            self.read()

    def take(self, number, payload):
        self.last = number
        seconds, events, rank = batch = msgspec.msgpack.decode(payload)
        assert seconds > 1.7e9 and rank == 0
        assert msgspec.msgpack.encode(batch) == payload, "vLLM's encoder writes the same bytes"
        for event in events:
            self.apply(event)
        self.events += events

    def apply(self, event):
        if event == CLEARED:
            self.blocks.clear()
            return
        assert event["medium"] == "GPU" and event["group_idx"] == 0
        if event["type"] == "BlockRemoved":
            assert list(event) == ["type", "block_hashes", "medium", "group_idx"]
            for block in event["block_hashes"]:
                del self.blocks[block]
            return
        salt = event.get("cache_salt", "")
        assert event["type"] == "BlockStored" and list(event) == (STORED[:-1] + ["cache_salt"] + STORED[-1:] if salt else STORED), event
        assert event["block_size"] == BLOCK and len(event["token_ids"]) == BLOCK * len(event["block_hashes"])
        parent = event["parent_block_hash"]
        for at, block in enumerate(event["block_hashes"]):
            self.blocks[block] = parent, tuple(event["token_ids"][at * BLOCK:(at + 1) * BLOCK]), salt
            parent = block

    def holds(self, prompt, salt=""):
        """Whether the whole blocks of a prompt are in the cache, for requests with this salt."""
        known = {about: block for block, about in self.blocks.items()}
        parent = None
        for at in range(0, len(prompt) // BLOCK * BLOCK, BLOCK):
            parent = known.get((parent, tuple(prompt[at:at + BLOCK]), salt))
            if parent is None:
                return False
        return True

    def by_block(self):
        """All events so far, one block each: how many were in a message is a matter of time."""
        for event in self.events:
            parent = event.get("parent_block_hash")
            for at, block in enumerate(event.get("block_hashes", [None])):
                yield event["type"], block, parent, event.get("token_ids", [])[at * BLOCK:(at + 1) * BLOCK]
                parent = block



def replay(endpoint, number):
    """The messages from a number on that the server still has: their numbers and payloads."""
    socket = socket_to(endpoint, zmq.DEALER)
    socket.send_multipart([b"", struct.pack(">Q", number)])
    while True:
        empty, number, payload = socket.recv_multipart()
        assert empty == b""
        [number] = struct.unpack(">Q", number)
        if number == LAST:
            assert payload == b""
            socket.close()
            return
        yield number, payload
