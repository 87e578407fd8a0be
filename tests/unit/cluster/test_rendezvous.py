"""Nodes meet before anything heavy is imported, or the error names node, host and port."""

import socket
import threading

import pytest

from llem.cluster.job.rendezvous import RendezvousError, meet


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(errors, **values):
    def call():
        try:
            meet(**{"host": "127.0.0.1", "word": "job-1", "timeout_s": 5, **values})
        except RendezvousError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_nodes_that_reach_each_other_meet_in_any_order(port):
    errors = []
    threads = [start(errors, node=f"n{i}", nodes=3, node_index=i, port=port) for i in (2, 0, 1)]
    for thread in threads:
        thread.join()
    assert errors == []
    # the port is free for the ranks themselves
    with socket.create_server(("", port)):
        pass


def test_one_node_has_no_one_to_meet():
    meet(node="n1", nodes=1, node_index=0, host="nowhere", port=1, word="x")


def test_a_node_that_never_comes_is_named_by_the_master(port):
    errors = []
    values = {"nodes": 3, "port": port, "timeout_s": 0.6}
    for thread in [start(errors, node=f"n{i}", node_index=i, **values) for i in (0, 1)]:
        thread.join()
    assert [str(e) for e in errors] == [
        f"node(s) 2 of the job's 3 did not connect to n0:{port} within 0.6 s"
    ]


@pytest.mark.parametrize(
    ("host", "why"), [("127.0.0.1", "refused"), ("no-such-host.invalid", "resol|known|name")]
)
def test_a_master_that_cannot_be_reached_is_named_with_the_node(port, host, why):
    with pytest.raises(RendezvousError, match=rf"node n2 does not reach {host}:{port}") as caught:
        meet(node="n2", nodes=2, node_index=1, host=host, port=port, word="x", timeout_s=0.3)
    import re

    assert re.search(why, str(caught.value), re.IGNORECASE)


def test_another_jobs_master_on_the_same_port_is_not_taken_for_ours(port):
    errors = []
    threads = [
        start(errors, node="a", nodes=2, node_index=0, port=port, word="job-1", timeout_s=0.8),
        start(errors, node="b", nodes=2, node_index=1, port=port, word="job-2", timeout_s=0.6),
    ]
    for thread in threads:
        thread.join()
    told = " ".join(str(e) for e in errors)
    assert "not rank 0 of this job" in told and "did not connect" in told


def test_a_port_that_is_taken_is_said_at_once(port):
    with socket.create_server(("", port)), pytest.raises(RendezvousError, match="cannot listen"):
        meet(node="n1", nodes=2, node_index=0, host="", port=port, word="x", timeout_s=5)
