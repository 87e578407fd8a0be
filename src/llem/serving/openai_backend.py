"""Any server with the OpenAI interface, started in the job: vLLM, SGLang, llama.cpp, TGI, ...

Its forward passes are its own, so that tokens are recorded as they arrive: one row for each piece
of the stream that has text. Prompts are sent as token ids, which is what was counted.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llem.campaign import Serving
from llem.errors import Fault, InputError, LlemError
from llem.records import RequestStatus
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import Request, Tokenizer
from llem.serving.server import Server
from llem.serving.tokenizers import tokenizer_of

TIMEOUT_S = 600.0
# With arrivals of a rate, as many requests may be under way as come.
MOST_UNDER_WAY = 1024


@dataclass(frozen=True)
class _Token:
    request: Request
    index: int
    t_ns: int


@dataclass(frozen=True)
class _Done:
    request: Request
    t_start_ns: int
    times_ns: tuple[int, ...]
    tokens_in: int | None
    tokens_out: int
    status: RequestStatus
    reason: str = ""


class OpenAIBackend:
    """One server for each replica; see `llem.serving.backend.Backend`."""

    sees_forwards = False

    def __init__(self, run: Serving, replica: Replica) -> None:
        self.run = run
        self.replica = replica
        self.options = run.deployment.effective
        command = self.command()
        if replica.size > 1 and replica.count > 1:
            text = "servers that split a model need a job for each replica"
            raise InputError(f"run {run.run_id}", [Fault("options.tensor_parallel", text)])
        model = run.deployment.model
        self.server = Server(
            command, values={"path": model.path or model.name, "gpus": replica.size}
        )
        self.model = ""
        self.told: dict[str, Any] = {}

    def command(self) -> str:
        """What starts the server. Raises InputError or UnavailableError."""
        command = self.options.get("command")
        if not command:
            text = "is required: what starts the server"
            hint = "e.g. vllm serve {path} --port {port}"
            raise InputError(f"run {self.run.run_id}", [Fault("options.command", text, hint)])
        return str(command)

    @property
    def ready_s(self) -> float:
        """How long it may take to answer."""
        return float(self.options.get("ready_s") or TIMEOUT_S)

    def load(self) -> None:
        if not self.replica.lead:
            return
        self.server.start()
        self.server.wait(self._answers, timeout_s=self.ready_s)

    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.run.deployment.model)

    def effective(self) -> dict[str, Any]:
        names = ("max_model_len", "owned_by")
        known = {str(key): value for key, value in self.told.items() if key in names}
        return {**self.options, "served_model": self.model, **known}

    def warmup_requests(self, requests: Sequence[Request]) -> Sequence[Request]:
        return list(requests[: self._together(requests)])

    def serve(self, requests: Sequence[Request], log: Log) -> None:
        if not self.replica.lead:
            return
        work: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in sorted(requests, key=lambda r: (r.arrival_s, r.number)):
            work.put(request)
        said: queue.SimpleQueue[_Token | _Done] = queue.SimpleQueue()
        leave = threading.Event()
        threads = [
            threading.Thread(target=self._ask, args=(work, said, log.t0_ns, leave), daemon=True)
            for _ in range(self._together(requests))
        ]
        for thread in threads:
            thread.start()
        open_requests = {request.number: request for request in requests}
        while open_requests:
            if log.stopping():
                leave.set()
            try:
                one = said.get(timeout=0.05)
            except queue.Empty:
                if leave.is_set() and not any(thread.is_alive() for thread in threads):
                    break
                if (status := self.server.ended()) is not None:
                    leave.set()
                    words = self.server.last_words()
                    raise LlemError(f"the server ended with status {status}:\n{words}") from None
                continue
            if isinstance(one, _Token):
                log.token(one.request, one.index, one.t_ns)
                continue
            del open_requests[one.request.number]
            log.request(
                one.request,
                batch=-1,
                tokens_in=one.tokens_in,
                tokens_out=one.tokens_out,
                t_start_ns=one.t_start_ns,
                t_first_ns=one.times_ns[0] if one.times_ns else 0,
                t_last_ns=one.times_ns[-1] if one.times_ns else 0,
                status=one.status,
            )
            if one.reason:
                log.event("request", f"request {one.request.number}: {one.reason}")
        log.left(list(open_requests.values()))

    def close(self) -> None:
        self.server.stop()

    def _together(self, requests: Sequence[Request]) -> int:
        """How many requests may be under way at one time."""
        if self.run.deployment.arrival.kind == "batch":
            return min(len(requests), int(self.options.get("batch_size") or 1))
        return min(len(requests), MOST_UNDER_WAY)

    def _answers(self) -> bool:
        """Whether the server tells its model."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5.0)
        try:
            connection.request("GET", "/v1/models")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                return False
            self.told = dict(json.loads(body)["data"][0])
            self.model = str(self.told["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False
        finally:
            connection.close()
        return True

    def _ask(
        self,
        work: queue.SimpleQueue[Request],
        said: queue.SimpleQueue[_Token | _Done],
        t0_ns: int,
        leave: threading.Event,
    ) -> None:
        """Send one request after the other, each when it arrives, until there are none."""
        while not leave.is_set():
            try:
                request = work.get_nowait()
            except queue.Empty:
                return
            due_ns = t0_ns + round(request.arrival_s * 1e9)
            if leave.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9)):
                return
            said.put(self._one(request, said, leave))

    def _one(
        self,
        request: Request,
        said: queue.SimpleQueue[_Token | _Done],
        leave: threading.Event,
    ) -> _Done:
        start_ns = time.monotonic_ns()
        times: list[int] = []
        usage: Mapping[str, Any] = {}
        ended = ""
        status, reason = RequestStatus.FINISHED, ""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT_S)
        try:
            body = json.dumps(self._body(request))
            connection.request(
                "POST", "/v1/completions", body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status != 200:
                words = answer.read(500).decode("utf-8", "replace")
                raise ValueError(f"status {answer.status}: {words}")
            for part, t_ns in _stream(answer):
                usage = part.get("usage") or usage
                for choice in part.get("choices", ()):
                    ended = choice.get("finish_reason") or ended
                    if choice.get("text"):
                        said.put(_Token(request, len(times), t_ns))
                        times.append(t_ns)
                if leave.is_set():
                    status = RequestStatus.LEFT
                    break
            else:
                if not ended:
                    raise ValueError("the stream ended before its text did")
                status = RequestStatus.STOPPED if ended == "stop" else RequestStatus.FINISHED
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            status, reason = RequestStatus.FAILED, str(error) or type(error).__name__
        finally:
            connection.close()
        return _Done(
            request=request,
            t_start_ns=start_ns,
            times_ns=tuple(times),
            tokens_in=usage.get("prompt_tokens"),
            tokens_out=int(usage.get("completion_tokens") or len(times)),
            status=status,
            reason=reason,
        )

    def _body(self, request: Request) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.tokens),
            "max_tokens": request.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": self.run.seed * 1_000_003 + request.number,
            "ignore_eos": bool(options.get("ignore_eos", True)),
        }
        # It changes the likeliest token too.
        if (penalty := options.get("repetition_penalty", 1.0)) != 1.0:
            body["repetition_penalty"] = penalty
        if not options.get("sample"):
            return {**body, "temperature": 0.0}
        names = ("temperature", "top_k", "top_p", "min_p")
        return {**body, **{n: options[n] for n in names if options.get(n) is not None}}


def _stream(answer: http.client.HTTPResponse) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a stream of server-sent events, each with when its line was there."""
    while line := answer.readline():
        t_ns = time.monotonic_ns()
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        yield json.loads(data), t_ns
