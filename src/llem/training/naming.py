"""Objects by their import path, "package.module:name": how ranks find what a user wrote."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from llem.campaign import IN_SESSION
from llem.errors import Fault, InputError, did_you_mean


def load_object(path: str, *, key: str, what: str = "an object") -> Any:
    """The object named "package.module:name"; the campaign's own `code/` is searched first.

    Raises InputError, at `key`, that says which part of the name does not exist.
    """
    module_name, colon, name = path.partition(":")
    if module_name == IN_SESSION:
        text = f"{name} lives in the session that planned this, and has no name to import"
        hint = "call find_optimal again there, or write it into a module: 'package.module:name'"
        raise InputError("model", [Fault(key, text, hint)])
    if not colon or not name or not module_name:
        text = f"{path!r} does not name {what}"
        raise InputError("model", [Fault(key, text, "write 'package.module:name'")])
    for folder in (os.getcwd(), os.path.join(os.getcwd(), "code")):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        text = f"{module_name!r} cannot be imported: {type(error).__name__}: {error}"
        raise InputError("model", [Fault(key, text)]) from error
    for part in name.split("."):
        if not hasattr(found, part):
            text = f"module {module_name!r} has no {name!r}"
            raise InputError("model", [Fault(key, text, did_you_mean(name, dir(found)))])
        found = getattr(found, part)
    return found
