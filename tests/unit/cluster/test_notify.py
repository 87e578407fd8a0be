"""Notifications: once each, JSON, no shell, and a hook that fails harms nothing."""

import json
import stat
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llem.campaign import campaign_from
from llem.cluster import CampaignFolder, Notifier, render_files, run_locally
from llem.cluster.state.notify import events
from llem.cluster.state.state import CampaignState, RunState
from llem.errors import InputError


@pytest.fixture
def server():
    """A web server on loopback; what it was sent, and the status it answers with."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(seen.status)
            if seen.status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    seen = HTTPServer(("127.0.0.1", 0), Handler)
    seen.got, seen.status = [], 200
    thread = threading.Thread(target=seen.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{seen.server_port}/hook/SECRET"
    yield seen
    seen.shutdown()
    seen.server_close()


@pytest.fixture
def planned(make, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def planned(**notify):
        plan = make(notify=notify) if notify else make()
        folder = CampaignFolder(tmp_path / "c")
        folder.write_plan(plan, {folder.jobs / n: t for n, t in render_files(plan).items()})
        return folder, folder.load_plan()

    return planned


def state_of(plan, *statuses, device_s=0.0):
    runs = tuple(
        RunState(run.run_id, "a", 0, statuses[min(i, len(statuses) - 1)], 1, 1.0, None, "",
                 device_s=device_s)
        for i, run in enumerate(plan.runs)
    )  # fmt: skip
    return CampaignState(runs, submitted=True, active=False, now_s=1.0)


def test_off_unless_asked_for(planned, server):
    folder, plan = planned()
    Notifier(folder, plan, pytest.fail)(state_of(plan, "completed"))
    assert not list(folder.jobs.glob("notified*"))


def test_the_webhook_is_told_once(planned, server):
    folder, plan = planned(webhook=server.url)
    done = state_of(plan, "completed")
    for _ in range(2):
        # a second process, too, sees that it was told
        Notifier(folder, plan, pytest.fail)(done)
    ((path, kind, body),) = server.got
    assert (path, kind) == ("/hook/SECRET", "application/json")
    assert body["schema"] == "llem-notify-1" and body["event"] == "done"
    assert body["campaign"] == "small" and body["counts"] == {"completed": len(plan.runs)}
    assert body["folder"] == str(folder.root)


def test_a_command_gets_the_json_on_its_input_and_its_words_as_they_are(planned, tmp_path):
    told = tmp_path / "told"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1" > {told}; cat >> {told}\n')
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    folder, plan = planned(command=[str(hook), "$(id); `id` && x"])
    Notifier(folder, plan, pytest.fail)(state_of(plan, "completed"))
    first, body = told.read_text().split("\n", 1)
    assert first == "$(id); `id` && x"
    assert json.loads(body)["event"] == "done"


def test_events(planned):
    _, plan = planned()
    assert events(plan, state_of(plan, "queued")) == []
    assert events(plan, state_of(plan, "completed", "diverged")) == ["done"]
    assert events(plan, state_of(plan, "failed", "queued")) == ["failed"]
    assert events(plan, state_of(plan, "interrupted", "running")) == []
    # in the job at the end nothing works any more
    assert events(plan, state_of(plan, "waiting", "completed"), over=True) == ["failed"]
    assert events(plan, state_of(plan, "completed"), over=True) == ["done"]
    share = plan.totals["gpu_hours"] * 3600 / len(plan.runs)
    assert events(plan, state_of(plan, "queued", device_s=0.79 * share)) == []
    assert events(plan, state_of(plan, "queued", device_s=0.81 * share)) == ["budget"]


def test_only_what_was_asked_for_is_told(planned, server):
    folder, plan = planned(webhook=server.url, events=["failed"])
    Notifier(folder, plan, pytest.fail)(state_of(plan, "completed"))
    assert server.got == []
    Notifier(folder, plan, pytest.fail)(state_of(plan, "lost", "completed"))
    assert [body["event"] for _, _, body in server.got] == ["failed"]


@pytest.mark.parametrize("status", [500, 302])
def test_a_webhook_that_fails_is_a_note_without_its_secret(planned, server, status):
    folder, plan = planned(webhook=server.url)
    server.status = status
    notes = []
    Notifier(folder, plan, notes.append)(state_of(plan, "completed"))
    (note,) = notes
    assert str(status) in note and "SECRET" not in note
    # a redirect is not followed
    assert len(server.got) == 1
    Notifier(folder, plan, pytest.fail)(state_of(plan, "completed"))


def test_a_server_that_is_not_there_is_a_note(planned, server):
    folder, plan = planned(webhook="http://127.0.0.1:9/SECRET")
    notes = []
    Notifier(folder, plan, notes.append)(state_of(plan, "completed"))
    assert len(notes) == 1 and "SECRET" not in notes[0]


@pytest.mark.parametrize("command", [["/no/such/hook"], ["false"], ["/etc/hostname"]])
def test_a_command_that_fails_is_a_note(planned, command):
    folder, plan = planned(command=command)
    notes = []
    Notifier(folder, plan, notes.append)(state_of(plan, "completed"))
    assert len(notes) == 1 and notes[0].startswith("notification 'done'")


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ({}, "needs a `command` or a `webhook`"),
        ({"webhook": "ftp://x/y"}, "https://HOST"),
        ({"webhook": "file:///etc/passwd"}, "https://HOST"),
        ({"webhook": "https:///x"}, "https://HOST"),
        ({"webhook": "https://x/\r\nHost: y"}, "control characters"),
        ({"webhook": "https://x:port/"}, "https://HOST"),
        ({"command": "rm -rf"}, "notify.command"),
        ({"webhook": "https://x/", "events": ["dine"]}, "did you mean 'done'"),
        ({"webhok": "https://x/"}, "did you mean 'webhook'"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(notify, says):
    with pytest.raises(InputError) as error:
        campaign_from({"name": "x", "target": "1e20", "notify": notify})
    assert says in str(error.value)


def test_the_sites_hooks_serve_a_campaign_without_its_own(make):
    site = {"nodes": 2, "gpus_per_node": 2, "notify": {"webhook": "https://x.example/"}}
    plan = make(site=site)
    assert Notifier(CampaignFolder("x"), plan, print).hooks.webhook == "https://x.example/"
    plan = make(site=site, notify={"command": ["true"]})
    assert Notifier(CampaignFolder("x"), plan, print).hooks.command == ("true",)


def test_who_is_told_does_not_change_the_plan(make):
    assert make(notify={"command": ["true"]}).digest == make().digest


def test_the_local_executor_may_try_again_while_it_works(make):
    plan = make(site={"executor": "local", "gpu": {"name": "cpu"}}, layout=None)
    failed = state_of(plan, "failed", "running")
    assert events(plan, replace(failed, active=True)) == []
    assert events(plan, failed) == ["failed"]


def test_on_the_local_executor_too_another_try_may_fail_anew(make, tmp_path, monkeypatch):
    plan = make(site={"executor": "local", "gpu": {"name": "cpu"}}, layout=None)
    folder = CampaignFolder(tmp_path / "c")
    folder.write_plan(plan, {folder.jobs / n: t for n, t in render_files(plan).items()})
    for event in ("failed", "budget"):
        folder.notified(event).touch()
    # Ranks that fail at once, of as many elements as the plan has.
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert len(run_locally(folder, plan).failed) == sum(len(a.elements) for a in plan.arrays)
    assert not folder.notified("failed").exists()
    assert folder.notified("budget").exists()
