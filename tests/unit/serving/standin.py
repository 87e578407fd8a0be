"""A server with the OpenAI interface that knows no model: a token every few milliseconds.

    standin.py PORT [--pause-s S] [--refuse N] [--break N] [--late-s S] [--child FILE] [...]

It refuses or breaks off the request whose first token id is N; `--child` starts a process of its
own, whose id it writes to FILE. As vLLM 0.32 does, it sends ids of tokens where asked for, pieces
without text while a character is not whole (`--half`), several tokens in one piece (`--together`),
and tells an error within a stream (`--err N`). Servers that know less: `--only-text` refuses ids as
prompts, `--unknown NAME` a field, `--no-ids` sends none back, `--no-usage` counts nothing,
`--swallow` sends no piece without text, `--rest` text with the end and now and then before it, be
it no token, `--end-with-last` no piece for the end alone, `--only-health` tells no model, as
transformers serve does. `--die N` ends it at the request of that first token id, `--die-slowly N` a
second after it. `--prompts FILE` writes each prompt as it came. `--stubborn` does not heed
SIGTERM, `--hang` says nothing more after two tokens of a text of more than four.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--pause-s", type=float, default=0.002)
parser.add_argument("--refuse", type=int, default=-1)
parser.add_argument("--break", dest="break_off", type=int, default=-1)
parser.add_argument("--err", type=int, default=-1)
parser.add_argument("--die", type=int, default=-1)
parser.add_argument("--late-s", type=float, default=0.0)
parser.add_argument("--fail", default="")
parser.add_argument("--child", default="")
parser.add_argument("--half", action="store_true")
parser.add_argument("--together", type=int, default=1)
parser.add_argument("--only-text", action="store_true")
parser.add_argument("--unknown", action="append", default=[])
parser.add_argument("--no-ids", action="store_true")
parser.add_argument("--no-usage", action="store_true")
parser.add_argument("--swallow", action="store_true")
parser.add_argument("--rest", action="store_true")
parser.add_argument("--end-with-last", action="store_true")
parser.add_argument("--context", type=int, default=99)
parser.add_argument("--only-health", action="store_true")
parser.add_argument("--die-slowly", type=int, default=-1)
parser.add_argument("--prompts", default="")
parser.add_argument("--stubborn", action="store_true")
parser.add_argument("--hang", action="store_true")
asked = parser.parse_args()

if asked.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if asked.fail:
    sys.exit(asked.fail)
if asked.child:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=False)
    Path(asked.child).write_text(str(child.pid))
time.sleep(asked.late_s)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if asked.only_health:
            self.answer(200 if self.path == "/health" else 500, "{}")
            return
        self.answer(200, json.dumps({"data": [{"id": "standin", "max_model_len": asked.context}]}))

    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == ("tiny" if asked.only_health else "standin")
        assert body["stream"] and body["temperature"] == 0.0
        prompt = body["prompt"]
        if asked.prompts:
            with open(asked.prompts, "a") as file:
                file.write(json.dumps(prompt) + "\n")
        if unknown := [name for name in asked.unknown if name in body]:
            self.answer(422, f"Unexpected keys in the request: {unknown}")
            return
        if asked.only_text and not isinstance(prompt, str):
            self.answer(400, "prompt must be a string.")
            return
        if prompt[0] == asked.refuse:
            self.answer(400, "this one is too long")
            return
        if prompt[0] == asked.die:
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        if prompt[0] == asked.die_slowly:
            # vLLM's server goes on answering for a moment when its engine is dead
            self.tell({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
            threading.Timer(1.0, os._exit, [0]).start()
            return
        if prompt[0] == asked.err:
            self.tell({"error": {"message": "Token id 320 is out of vocabulary", "code": 400}})
            self.wfile.write(b"data: [DONE]\n\n")
            return
        most, made = body["max_tokens"], 0
        while made < most:
            if prompt[0] == asked.break_off and made == 2:
                return
            time.sleep(600 if asked.hang and most > 4 and made == 2 else asked.pause_s)
            ids = list(range(made, min(most, made + asked.together)))
            made += len(ids)
            choice = {"text": "" if asked.half and made < most else f" {made}"}
            if body.get("return_token_ids") and not asked.no_ids:
                choice["token_ids"] = ids
            end = "length" if asked.end_with_last and made == most else None
            if choice["text"] or not asked.swallow:
                self.tell({"choices": [{**choice, "finish_reason": end}]})
        if asked.rest and most > 4:
            self.tell({"choices": [{"text": "?", "finish_reason": None}]})
        if not asked.end_with_last:
            rest = "?" if asked.rest else ""
            self.tell({"choices": [{"text": rest, "finish_reason": "length"}]})
        if not asked.no_usage:
            usage = {"prompt_tokens": len(prompt), "completion_tokens": most}
            self.tell({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def tell(self, part):
        self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.flush()


ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()
