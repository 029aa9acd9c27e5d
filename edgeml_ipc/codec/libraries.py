"""The libraries that compress, imported when they are first needed; each belongs to an extra."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Final

from edgeml_ipc.errors import CodecError

_EXTRAS: Final = {"simplejpeg": "video", "lz4.block": "compress", "zstandard": "compress"}


@cache
def library(name: str) -> Any:
    """Return the module of that name.

    Raises:
        CodecError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, extra = name.partition(".")[0], _EXTRAS[name]
        raise CodecError(f"this needs {package}, which is not installed here: pip install 'edgeml_ipc[{extra}]'") from error
