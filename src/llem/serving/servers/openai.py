"""Any server with the OpenAI interface, started in the job: vLLM, SGLang, llama.cpp, TGI, ...

Its forward passes are its own, so that tokens are recorded as they arrive. What a server takes is
found out by a first request (`llem.serving.servers.dialect`): prompts are token ids where it takes
them, and tokens are counted by the ids that it sends back, else by the pieces of the stream.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llem.campaign import Serving
from llem.errors import Fault, InputError, LlemError, UnavailableError
from llem.records import RequestStatus
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import Request, Tokenizer
from llem.serving.servers.dialect import Dialect, Refused, find_dialect
from llem.serving.servers.memory import ServerMemory
from llem.serving.servers.server import STOP_S, Server
from llem.serving.tokenizers import texts_of, tokenizer_of

TIMEOUT_S = 600.0
# With arrivals of a rate, as many requests may be under way as come.
MOST_UNDER_WAY = 1024
PATH = "/v1/completions"
HEADERS = {"Content-Type": "application/json"}
DEVICES = "CUDA_VISIBLE_DEVICES"
# Some servers keep a seed in 32 bits, with a sign.
MOST_SEED = 2**31
# How a stream says that a text came to its end; all else is a failure of the server's.
ENDS = {"stop": RequestStatus.STOPPED, "length": RequestStatus.FINISHED}
# How long a server that broke off is given to be gone.
DEATH_S = 30.0
# Whoever has to leave has some 20 s for all of it. A server that the same signal reached may keep
# its connections open and say nothing: requests are not waited for, and it is not asked for long.
LEAVE_S = 1.0
HURRIED_S = 3.0


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
    # Whether the server broke off, and did not refuse what was asked.
    broken: bool = False


class OpenAIBackend:
    """One server for each replica; see `llem.serving.backend.Backend`."""

    sees_forwards = False

    def __init__(self, run: Serving, replica: Replica) -> None:
        self.run = run
        self.replica = replica
        self.options = run.deployment.effective
        self.gpus = self._gpus()
        model = run.deployment.model
        self.server = Server(
            self.command(),
            values={"path": model.path or model.name, "gpus": replica.size},
            environment=self.environment(),
        )
        self.model = ""
        self.told: dict[str, Any] = {}
        self.dialect = Dialect()
        # Whether to leave; asked while the server is waited for.
        self.leave: Callable[[], bool] = lambda: False
        self._rounds = 0
        self._left = False

    @staticmethod
    def prepare(run: Serving) -> None:
        """A server imports for itself."""

    def command(self) -> str:
        """What starts the server. Raises InputError or UnavailableError."""
        command = self.options.get("command")
        if not command:
            text = "is required: what starts the server"
            hint = "e.g. vllm serve {path} --port {port}"
            raise InputError(f"run {self.run.run_id}", [Fault("options.command", text, hint)])
        return str(command)

    def environment(self) -> dict[str, str]:
        """What the server has in its environment beside ours: its own GPUs, of several."""
        if not self.gpus:
            return {}
        seen = [part for part in os.environ.get(DEVICES, "").split(",") if part]
        return {DEVICES: ",".join(seen[i] if seen else str(i) for i in self.gpus)}

    def _gpus(self) -> list[int]:
        """The numbers of this replica's GPUs among those that this rank sees.

        Every rank sees all of its node's, or where SLURM binds them, its own alone. Raises
        InputError where they do not suffice.
        """
        import torch

        world, size = self.replica.world, self.replica.size
        if world.device.type != "cuda" or not self.replica.lead:
            return []
        seen, first = torch.cuda.device_count(), world.device.index or 0
        if first + size > seen:
            text = f"a server on {size} GPUs cannot be started by a rank that sees {seen}"
            hint = "site.gpu_request: gpus-per-node, and a replica within a node"
            raise InputError(
                f"run {self.run.run_id}", [Fault("options.tensor_parallel", text, hint)]
            )
        return list(range(first, first + size))

    def memory(self) -> ServerMemory:
        """Of the server, whose the model is."""
        device = self.replica.world.device
        return ServerMemory(self.server.processes, device, devices=self.gpus)

    @property
    def ready_s(self) -> float:
        """How long it may take to answer."""
        return float(self.options.get("ready_s") or TIMEOUT_S)

    def load(self) -> None:
        if not self.replica.lead:
            return
        self.server.start()
        self.server.wait(self._answers, timeout_s=self.ready_s, leave=self.leave)
        if not self.model:
            self._left = True
            return
        try:
            self.dialect = find_dialect(self._post, self._body(self._probe()), text=self._text)
        except UnavailableError as error:
            text = f"the server takes no token ids, and {error.message}"
            raise UnavailableError(text, remedy=error.remedy) from None
        except Refused as error:
            text = f"the server takes no request of llem's: {error}"
            raise InputError(f"run {self.run.run_id}", [Fault("backend", text)]) from None

    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.run.deployment.model)

    def effective(self) -> dict[str, Any]:
        names = ("max_model_len", "owned_by")
        known = {str(key): value for key, value in self.told.items() if key in names}
        return {**self.options, "served_model": self.model, **known, **self.dialect.told()}

    def warmup_requests(self, requests: Sequence[Request]) -> Sequence[Request]:
        return list(requests[: self._together(requests)])

    def serve(self, requests: Sequence[Request], log: Log) -> None:
        if not self.replica.lead:
            return
        self._check_lengths(requests)
        requests = self._not_cached(requests, log)
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
        broken = False
        until_s = math.inf
        while open_requests:
            if not leave.is_set() and log.stopping():
                self._left = True
                leave.set()
                until_s = time.monotonic() + LEAVE_S
            try:
                one = said.get(timeout=0.05)
            except queue.Empty:
                if leave.is_set():
                    if time.monotonic() < until_s and any(t.is_alive() for t in threads):
                        continue
                    break
                status = self.server.ended()
                # The signal that asks to leave may have reached the server first.
                if status is not None and not log.stopping():
                    leave.set()
                    raise self._died(status) from None
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
            # Those that the server counted and sent no piece for.
            log.tokens_out += one.tokens_out - len(one.times_ns)
            if one.reason:
                broken = broken or one.broken
                log.event("request", f"request {one.request.number}: {one.reason}")
        log.left(list(open_requests.values()))
        # Requests of a server that dies fail before it is gone: they were not refused one by one.
        if broken and not leave.is_set() and not log.stopping():
            status = self.server.ended(patience_s=DEATH_S)
            if status is not None:
                raise self._died(status)

    def close(self) -> None:
        self.server.stop(patience_s=HURRIED_S if self._left else STOP_S)

    def _died(self, status: int) -> LlemError:
        return LlemError(f"the server ended with status {status}:\n{self.server.last_words()}")

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        """Raises InputError for requests that the server would refuse one by one."""
        most = self.told.get("max_model_len")
        longest = max((len(r.tokens) + r.output_tokens for r in requests), default=0)
        if isinstance(most, int) and longest > most:
            text = f"a request of {longest} tokens, in and out, and the server takes {most}"
            raise InputError(
                f"run {self.run.run_id}", [Fault("prompts", text, "shorter ones, or more context")]
            )

    def _not_cached(self, requests: Sequence[Request], log: Log) -> list[Request]:
        """In the warm-up, prompts that no other round has: a server keeps what prompts share, and
        would find the window's prompts in its cache."""
        if not log.warmup:
            return list(requests)
        self._rounds += 1
        vocabulary = self.run.deployment.model.vocabulary
        return [
            replace(r, tokens=[(r.tokens[0] + self._rounds) % vocabulary, *r.tokens[1:]])
            for r in requests
        ]

    def _together(self, requests: Sequence[Request]) -> int:
        """How many requests may be under way at one time."""
        if self.run.deployment.arrival.kind == "batch":
            return min(len(requests), int(self.options.get("batch_size") or 1))
        return min(len(requests), MOST_UNDER_WAY)

    def _answers(self) -> bool:
        """Whether the server tells its model; of one that is well and tells none, the model is
        ours."""
        ours = self.run.deployment.model.path or self.run.deployment.model.name
        try:
            status, body = self._get("/v1/models")
            if status == 200:
                models = [dict(model) for model in json.loads(body)["data"]]
                named = [m for m in models if ours in (m.get("id"), m.get("root"))]
                self.told = (named or models or [{"id": ours}])[0]
            elif self._get("/health")[0] == 200:
                # transformers serve: its list is of what was fetched before
                self.told = {"id": ours}
            else:
                return False
            self.model = str(self.told["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False
        return True

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5.0)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

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
        status, reason, broken = RequestStatus.FINISHED, "", True
        connection = self._connection()
        try:
            body = self.dialect.body(self._body(request), text=self._text)
            connection.request("POST", PATH, json.dumps(body), HEADERS)
            answer = connection.getresponse()
            if answer.status != 200:
                words = answer.read(500).decode("utf-8", "replace")
                broken = answer.status >= 500
                raise ValueError(f"status {answer.status}: {words}")
            for part, t_ns in _stream(answer):
                if (error := part.get("error")) is not None:
                    broken = int(error.get("code") or 500) >= 500
                    raise ValueError(str(error.get("message", error)))
                usage = part.get("usage") or usage
                for choice in part.get("choices", ()):
                    ended = choice.get("finish_reason") or ended
                    made = self.dialect.tokens(choice)
                    if not self.dialect.ids:
                        # Text that is left over at the end may come in a piece of its own.
                        made = min(made, request.output_tokens - len(times))
                    for _ in range(made):
                        said.put(_Token(request, len(times), t_ns))
                        times.append(t_ns)
                if leave.is_set():
                    status = RequestStatus.LEFT
                    break
            else:
                if not ended:
                    raise ValueError("the stream ended before its text did")
                if ended not in ENDS:
                    raise ValueError(f"the server ended it: {ended}")
                status = ENDS[ended]
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            status, reason = RequestStatus.FAILED, str(error) or type(error).__name__
        finally:
            connection.close()
        # Of a server that counts nothing: a text that came to the length asked for has it.
        counted = request.output_tokens if status == RequestStatus.FINISHED else len(times)
        return _Done(
            request=request,
            t_start_ns=start_ns,
            times_ns=tuple(times),
            tokens_in=usage.get("prompt_tokens"),
            tokens_out=int(usage.get("completion_tokens") or counted),
            status=status,
            reason=reason,
            broken=bool(reason) and broken,
        )

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT_S)

    def _post(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The parts of the answer to a body. Raises Refused with the server's words."""
        connection = self._connection()
        try:
            connection.request("POST", PATH, json.dumps(body), HEADERS)
            answer = connection.getresponse()
            if answer.status != 200:
                words = " ".join(answer.read(2000).decode("utf-8", "replace").split())
                raise Refused(f"status {answer.status}: {words[:500]}")
            parts = [part for part, _ in _stream(answer)]
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(str(error) or type(error).__name__) from None
        finally:
            connection.close()
        for part in parts:
            if part.get("error") is not None:
                raise Refused(str(part["error"]))
        return parts

    def _probe(self) -> Request:
        """A request that asks for little, to hear what the server takes."""
        tokens = [i % self.run.deployment.model.vocabulary for i in (65, 66, 67)]
        return Request(number=0, prompt=0, tokens=tokens, output_tokens=4)

    def _text(self, tokens: Sequence[int]) -> str:
        """A prompt's text, of a server that takes no ids."""
        return self._texts(tokens)

    @cached_property
    def _texts(self) -> Callable[[Sequence[int]], str]:
        return texts_of(self.run.deployment.model)

    def _body(self, request: Request) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.tokens),
            "max_tokens": request.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "seed": (self.run.seed * 1_000_003 + request.number) % MOST_SEED,
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
