"""Inside the image: DeepSpeed's own tests of the training engine, which no host here can run."""

import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_deepspeed_trains_resumes_and_agrees_in_the_image(login, image):
    """ZeRO 1 to 3 on one and two ranks, by the unit tests that skip where DeepSpeed is absent."""
    pytest_folder = login.home / "pytest"
    wanted = ["pytest", "pytest-timeout"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", pytest_folder, *wanted],
        check=True,
    )
    tests = login.home / "training"
    shutil.copytree(TESTS / "unit" / "training", tests)
    subprocess.run(["chown", "-R", "llem:llem", tests, pytest_folder], check=True)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "markers=train: needs torch",
        "--rootdir",
        tests,
    ]
    done = login.run(
        "apptainer", "--quiet", "exec", "--bind", login.home, "--pwd", tests,
        "--env", f"PYTHONPATH={pytest_folder}", image,
        "python3", "-m", "pytest", *options, "test_deepspeed.py",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
