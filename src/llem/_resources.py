"""Where the files that ship beside the code are: inside the wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """The folder `name` (`slurm_templates`, `apptainer`) of an installed wheel or a checkout."""
    for candidate in (PACKAGE / name, PACKAGE.parent.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"llem's own folder {name!r} is missing: the installation is damaged")
