"""Discovery through etcd, which deployments of several machines need."""

import pytest
from conftest import ANSWERS, ask, deployed
from deployment import Etcd
from servers import wait_until

pytestmark = pytest.mark.skipif(not Etcd.binary, reason="etcd is not there (Debian's etcd-server)")


@pytest.fixture
def deployment(tmp_path):
    etcd = Etcd(tmp_path)
    for running in deployed(prefill=1, decode=1, etcd=etcd):
        yield running
    etcd.stop()


def test_discovery_through_etcd(deployment):
    for thing in ANSWERS:
        answer = deployment.client().chat.completions.create(model="tiny", messages=ask(thing), temperature=0)
        assert answer.choices[0].message.content == ANSWERS[thing]
    assert deployment.of("decode")[0].engine.metric("cleave_kv_imports_total") > len(ANSWERS)
    assert not list(deployment.directory.glob("discovery/**/*")), "nothing went through files"
    worker = deployment.add("decode")
    deployment.wait_until_ready()
    wait_until("the new worker serves", lambda: deployment.serves() and worker.engine.metric("cleave_kv_imports_total"))
