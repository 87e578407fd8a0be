"""`llem.run_study` and `run_experiment` on the real cluster, from a user's own Python program."""

import json
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_profile

PROGRAM = """\
import json, os, signal, sys, threading, time
from pathlib import Path

import llem

CALL = json.loads(Path("call.json").read_text())


def ctrl_c():
    while not Path("from-python/jobs/submitted.json").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


if sys.argv[1] == "stopped":
    threading.Thread(target=ctrl_c, daemon=True).start()
    try:
        llem.run_study(out="from-python", **CALL)
    except KeyboardInterrupt as stopped:
        print(stopped)
else:
    one = llem.run_experiment(out="one-from-python", **CALL | {"sweep": {}})
    study = llem.run_study(out="from-python", **CALL)
    print(json.dumps({
        "one": {"j_per_token": one.j_per_token.value, "precision": one.effective["precision"]},
        "rows": [{name: row[name] for name in ("options.batch_size", "j_per_token")}
                 for row in study.table(by="options.batch_size")],
    }))
"""
LLAMA = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def program(login, image, nvml):
    """The program, with how it calls; `run` runs it as the user."""
    call = {
        "model": LLAMA,
        "prompts": {"synthetic": {"input_tokens": 24, "output_tokens": 8, "count": 8}},
        "sweep": {"grid": {"options.batch_size": [2, 8]}},
        "cycles": 1,
        "warmup": {"least": 1, "most": 1},
        "executor": "slurm",
        "site": yaml.safe_load(farm_profile(image, nvml, limits={"time": "30m"})),
    }
    login.write("call.json", json.dumps(call))
    script = login.write("program.py", PROGRAM)
    python = Path(login.program).with_name("python")
    return lambda word: login.run(python, script, word, timeout=300)


def test_a_study_from_python_outlives_ctrl_c_and_comes_to_its_result(login, program):
    folder = login.home / "from-python"
    said = program("stopped").stdout
    assert "what was submitted goes on" in said and "`llem cancel from-python` ends it" in said
    submitted = (folder / "jobs" / "submitted.json").read_text()
    stopped_ns = time.time_ns()

    done = program("again")

    told = json.loads(done.stdout)
    assert [row["options.batch_size"] for row in told["rows"]] == [2, 8]
    assert all(row["j_per_token"] > 0 for row in told["rows"])
    assert told["one"]["j_per_token"] > 0 and told["one"]["precision"]
    ends = [json.loads(path.read_text()) for path in folder.glob("runs/*/attempt-*/end.json")]
    assert max(end["ended_ns"] for end in ends) > stopped_ns, "it was over when it was stopped"
    # Nothing was submitted or served twice, and the records say that nothing was disturbed.
    assert (folder / "jobs" / "submitted.json").read_text() == submitted
    attempts = sorted(path.name for path in folder.glob("runs/*/attempt-*"))
    assert attempts == ["attempt-0", "attempt-0"], done.stderr
