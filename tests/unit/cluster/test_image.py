"""The wheel that goes into an image, and the calls that are refused before anything is built."""

import subprocess
import sys
import zipfile

import pytest

from llem import __version__
from llem._resources import resource_folder
from llem.cluster.image import KINDS, build_image, own_wheel
from llem.errors import InputError


def test_the_running_llem_packs_itself_into_a_wheel_that_installs(tmp_path):
    wheel = own_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert "llem/apptainer/llem-cpu.def" in names
    assert "llem/slurm_templates/array.sbatch.j2" in names
    assert not any(name.endswith(".pyc") for name in names)
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", target, wheel], check=True)
    script = "import llem; from llem._resources import resource_folder as f; "
    script += "print(llem.__version__, llem.__file__, f('apptainer'))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(target)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    version, where, definitions = done.stdout.split()
    assert version == __version__
    assert where.startswith(str(target))
    assert definitions == str(target / "llem" / "apptainer")


def test_every_kind_has_its_definition_and_what_it_holds():
    folder = resource_folder("apptainer")
    for kind in KINDS:
        assert (folder / f"llem-{kind}.def").is_file()
        assert (folder / f"requirements-{kind}.txt").is_file()


def test_the_same_llem_gives_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert own_wheel(tmp_path / "a").read_bytes() == own_wheel(tmp_path / "b").read_bytes()


def test_every_fault_of_a_build_is_told_at_once(tmp_path):
    out = tmp_path / "x.sif"
    out.touch()
    with pytest.raises(InputError) as caught:
        build_image(out, kind="cud", wheelhouse=tmp_path / "none", base="none.sif")
    assert [f.path for f in caught.value.faults] == ["kind", "--out", "--wheelhouse", "--base"]
