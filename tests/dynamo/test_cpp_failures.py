"""Workers in C++ that end in the middle of streams: those in Go go on."""

import signal

import pytest
from conftest import deployed
from servers import LANGUAGES
from test_failures import check_that_streams_survive, wanted  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif("cpp" not in LANGUAGES, reason="the C++ server was not built with gRPC")


@pytest.fixture(scope="module")
def deployment(slow_model):
    yield from deployed(prefill=["cpp", "go"], decode=["cpp", "go"], model=slow_model, engine_options=["--drain", "0"],
                        frontend_options=["--migration-limit", "3"], grace=5)


ENDS = [("decode", "engine", signal.SIGTERM), ("decode", "worker", signal.SIGTERM), ("prefill", "engine", signal.SIGTERM), ("prefill", "engine", signal.SIGKILL)]


@pytest.mark.parametrize("role, part, number", ENDS, ids=lambda value: getattr(value, "name", value))
def test_texts_are_those_of_an_undisturbed_run(deployment, wanted, role, part, number):  # noqa: F811
    check_that_streams_survive(deployment, wanted, role, part, number)
