"""What may stand in a script: the guards that keep users' values out of the shell.

A *directive* is a value that is rendered into a job script. It is refused unless every character
is on a short list; no quoting is relied on. Everything else that a user types travels in the
manifest, which is data.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

_DIRECTIVE = re.compile(r"[A-Za-z0-9_.,:=+@%/\[\]*-]+")
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.,:=+@%/\[\]*&|()!-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_GRES_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NODELIST = re.compile(r"[A-Za-z0-9_.,\[\]-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# `:` and `,` separate Apptainer's bind specifications; `%` is expanded by SLURM in file names.
_PATH_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f'\"`$\\!;&|<>*?(){}\[\],:%\u0085\u2028\u2029]")


def shown(text: str) -> str:
    """The offending characters of a refused value, named so that a reader can see them."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def check_directive(value: str) -> str:
    """A value for an `#SBATCH` line. Raises ValueError."""
    if not _DIRECTIVE.fullmatch(value):
        raise ValueError(
            f"{shown(value)} cannot stand in a job script: letters, digits and _.,:=+@%/[]*- only"
        )
    return value


def check_constraint(value: str) -> str:
    """A node constraint, where SLURM's operators `&|()!` are allowed too. Raises ValueError."""
    if not _CONSTRAINT.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a SLURM constraint")
    return value


def check_flag(value: str) -> str:
    """The long name of an sbatch option, without its dashes. Raises ValueError."""
    if not _FLAG.fullmatch(value):
        raise ValueError(f"{shown(value)} is not the long name of an sbatch option")
    return value


def check_extra(value: object) -> object:
    """The value of a further sbatch option: `true` where it takes none. Raises ValueError."""
    if value is True:
        return True
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return check_directive(str(value))
    raise ValueError(f"{shown(str(value))} is no value of an sbatch option: text, a number or true")


def check_gres_type(value: str) -> str:
    """The type of a generic resource, as in `gpu:a100:4`. Raises ValueError."""
    if not _GRES_TYPE.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a gres type")
    return value


def check_nodelist(value: str) -> str:
    """Nodes as SLURM writes them, `n[1-3,7],m2`. Raises ValueError."""
    if not _NODELIST.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a list of nodes")
    return value


def check_variable(value: str) -> str:
    """The name of an environment variable. Raises ValueError."""
    if not _VARIABLE.fullmatch(value):
        raise ValueError(f"{shown(value)} is not the name of an environment variable")
    return value


def check_name(value: str) -> str:
    """A campaign's or site's name, which becomes job and file names. Raises ValueError."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{shown(value)} is not a name: letters, digits and ._- only, at most 64, "
            "starting with a letter or digit"
        )
    return value


def check_script_path(value: str) -> str:
    """A path that is rendered (quoted) into a job script. Raises ValueError."""
    if not value or value != value.strip() or value.startswith("-"):
        raise ValueError(f"{shown(value)} is not a path")
    if found := _PATH_FORBIDDEN.search(value):
        raise ValueError(f"{shown(value)}: {found[0]!a} cannot stand in a job script's path")
    return value


def check_bind(value: str) -> str:
    """A bind of Apptainer's, `SOURCE[:TARGET[:ro|rw]]`. Raises ValueError."""
    parts = value.split(":")
    if len(parts) > 3 or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise ValueError(f"{shown(value)} is not SOURCE[:TARGET[:ro|rw]]")
    for part in parts[:2]:
        check_script_path(part)
    return value


def check_data_text(value: str) -> str:
    """Text that travels as data: anything but the null character. Raises ValueError."""
    if "\x00" in value:
        raise ValueError("holds a null character")
    return value


def check_web_address(value: str) -> str:
    """`http://` or `https://` with a host, and nothing that could become a second header or line.

    Raises ValueError, without what follows the host: that is often a secret.
    """
    from urllib.parse import urlsplit

    if re.search(r"[\x00-\x20\x7f-\uffff]", value):
        raise ValueError("a web address has no spaces, control characters or letters beyond ASCII")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("not a web address: https://HOST/...") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("not a web address: https://HOST/...")
    return value


Directive = Annotated[str, AfterValidator(check_directive)]
Constraint = Annotated[str, AfterValidator(check_constraint)]
Extra = Annotated[Literal[True] | str, BeforeValidator(check_extra)]
Flag = Annotated[str, AfterValidator(check_flag)]
GresType = Annotated[str, AfterValidator(check_gres_type)]
Nodelist = Annotated[str, AfterValidator(check_nodelist)]
Variable = Annotated[str, AfterValidator(check_variable)]
Name = Annotated[str, AfterValidator(check_name)]
ScriptPath = Annotated[str, AfterValidator(check_script_path)]
Bind = Annotated[str, AfterValidator(check_bind)]
DataText = Annotated[str, AfterValidator(check_data_text)]
WebAddress = Annotated[str, AfterValidator(check_web_address)]
