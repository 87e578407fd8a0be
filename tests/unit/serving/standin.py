"""A server with the OpenAI interface that knows no model: a token every few milliseconds.

    standin.py PORT [--pause-s S] [--refuse N] [--break N] [--late-s S] [--child FILE]

It refuses or breaks off the request whose first token id is N; `--child` starts a process of its
own, whose id it writes to FILE.
"""

import argparse
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--pause-s", type=float, default=0.002)
parser.add_argument("--refuse", type=int, default=-1)
parser.add_argument("--break", dest="break_off", type=int, default=-1)
parser.add_argument("--late-s", type=float, default=0.0)
parser.add_argument("--fail", default="")
parser.add_argument("--child", default="")
asked = parser.parse_args()

if asked.fail:
    sys.exit(asked.fail)
if asked.child:
    child = subprocess.Popen(["sleep", "1000"])
    Path(asked.child).write_text(str(child.pid))
time.sleep(asked.late_s)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, json.dumps({"data": [{"id": "standin", "max_model_len": 99}]}))

    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "standin" and body["stream"] and body["temperature"] == 0.0
        prompt = body["prompt"]
        if prompt[0] == asked.refuse:
            self.answer(400, "this one is too long")
            return
        self.send_response(200)
        self.end_headers()
        for i in range(body["max_tokens"]):
            if prompt[0] == asked.break_off and i == 2:
                return
            time.sleep(asked.pause_s)
            self.tell({"choices": [{"text": f" {i}", "finish_reason": None}]})
        usage = {"prompt_tokens": len(prompt), "completion_tokens": body["max_tokens"]}
        self.tell({"choices": [{"text": "", "finish_reason": "length"}]})
        self.tell({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def tell(self, part):
        self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.flush()


ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()
