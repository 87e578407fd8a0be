"""Inside the image: DeepSpeed's own tests of the training engine, which no host here can run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# What pytest is told beside its configuration, which the image does not have.
OPTIONS = ("-q", "-rp", "-p", "no:cacheprovider", "-o", "markers=train: needs torch")


@pytest.fixture(scope="module")
def in_image(login, image):
    """Run a test file of this checkout by the image's Python; what pytest told."""
    pytest_folder, tests = login.home / "pytest", login.home / "tests"
    wanted = ["pytest", "pytest-timeout"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", pytest_folder, *wanted],
        check=True,
    )
    for folder in ("unit/training", "integration"):
        shutil.copytree(TESTS / folder, tests / folder)
    subprocess.run(["chown", "-R", "llem:llem", tests, pytest_folder], check=True)

    def run(file, *environment):
        given = (f"PYTHONPATH={pytest_folder}", *environment)
        done = login.run(
            "apptainer", "--quiet", "exec", "--bind", login.home, "--pwd", (tests / file).parent,
            *(word for name in given for word in ("--env", name)), image,
            "python3", "-m", "pytest", *OPTIONS, "--rootdir", tests, Path(file).name,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        return done.stdout

    return run


def test_deepspeed_trains_resumes_and_agrees_in_the_image(in_image):
    """ZeRO 1 to 3 on one and two ranks, by the unit tests that skip where DeepSpeed is absent."""
    told = in_image("unit/training/test_deepspeed.py")
    assert " passed" in told
    assert "skipped" not in told


def test_zero_trains_to_the_loss_curve_of_one_plain_rank_in_the_image(in_image):
    """Each stage within 1e-4 over 200 steps, and after a SIGKILL to the same bits."""
    told = in_image("integration/test_equality.py", "LLEM_EQUALITY=zero", "OMP_NUM_THREADS=1")
    for stage in (1, 2, 3):
        assert f"the_loss_curve_is_that_of_one_rank[zero-{stage}, " in told
    assert " passed" in told
