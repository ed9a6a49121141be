import pytest
from deployment import Deployment
from servers import MODEL, SMALL, Server
from slow_model import write

QUESTION = "the red box holds a key. the blue jar holds a coin. the green bag holds a shell. what does the {} hold?"
ANSWERS = {"red box": "a key.", "blue jar": "a coin.", "green bag": "a shell."}


def ask(thing):
    return [{"role": "user", "content": QUESTION.format(thing)}]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the logs of what it used."""
    report = yield
    if report.failed:
        for value in item.funcargs.values():
            if isinstance(value, Deployment):
                value.show_logs()
    return report


def deployed(**options):
    deployment = Deployment(**options)
    try:
        yield deployment
        deployment.check_quiescent()
        deployment.stop()
    finally:
        deployment.kill()


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="session")
def alone():
    """The library without anything between it and the client but HTTP."""
    server = Server("go", "--listen", "127.0.0.1:0", "--model", MODEL, *SMALL)
    yield server
    assert server.holds_nothing()
    assert server.stop() == 0
