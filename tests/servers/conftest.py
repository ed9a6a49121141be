import openai
import pytest
import slow_model as slow_model_module
from servers import LANGUAGES, MODEL, PAGE, SMALL, Cluster, Server

QUESTION = "the red box holds a key. the blue jar holds a coin. the green bag holds a shell. what does the {} hold?"
ANSWERS = {"red box": "a key.", "blue jar": "a coin.", "green bag": "a shell."}


def ask(thing):
    return [{"role": "user", "content": QUESTION.format(thing)}]


def client_of(server, kind=openai.OpenAI):
    return kind(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def mixed(language, model=MODEL):
    return Server(language, "--listen", "127.0.0.1:0", "--model", model, "--page", PAGE, *SMALL)


# Every set-up that a client may meet: one process, a front with workers, and the two languages among each other.
def setups():
    for language in LANGUAGES:
        yield f"{language}-mixed", lambda language=language: mixed(language)
        yield f"{language}-front", lambda language=language: Cluster(language, [language], [language, language])
    if len(LANGUAGES) == 2:
        yield "go-front-cpp-workers", lambda: Cluster("go", ["cpp"], ["cpp", "go"])
        yield "cpp-front-go-workers", lambda: Cluster("cpp", ["go"], ["go", "cpp"])


SETUPS = dict(setups())


@pytest.fixture(scope="session", params=SETUPS)
def server(request):
    running = SETUPS[request.param]()
    yield running
    if isinstance(running, Cluster):
        running.check_quiescent()
        running.stop()
    else:
        assert running.holds_nothing()
        assert running.stop() == 0


@pytest.fixture(scope="session", params=[name for name in SETUPS if name.endswith("mixed")])
def mixed_server(request):
    running = SETUPS[request.param]()
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(server):
    return client_of(server)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    return slow_model_module.write(tmp_path_factory.mktemp("slow"))


@pytest.fixture(params=LANGUAGES)
def cluster(request, slow_model):
    """One of its own for a test that breaks it."""
    running = Cluster(request.param, [request.param], [request.param, request.param], slow_model)
    yield running
    for process in [*running.workers, running.front]:
        if process.process.poll() is None:
            process.kill()
