"""Build the optional C core; everything else about the package stands in pyproject.toml.

The extension is left out, and the installation goes on, where shared memory cannot work: no C compiler, a system other
than Linux, or a free-threaded Python (which has no stable ABI). `auto` addresses then mean tcp.

Environment: EDGEML_IPC_SANITIZE=thread|address builds the core under that sanitizer (address brings undefined-behaviour
checks along); the interpreter must then be started with the sanitizer's run-time library preloaded.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"]
SANITIZERS = {
    "": [],
    "thread": ["-O1", "-g", "-fsanitize=thread", "-fno-omit-frame-pointer"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
}
STABLE_ABI = "cp311"  # the oldest Python that one wheel serves
ROOT = Path(__file__).parent


def why_not() -> str | None:
    """Say why this interpreter cannot have the C core, or None."""
    if not sys.platform.startswith("linux"):
        return f"shared memory needs Linux, this is {sys.platform}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a free-threaded Python has no stable ABI"
    return None


def core() -> Extension:
    """Describe the extension module: the thin binding, and every C source of the language-neutral half."""
    sanitizer = os.environ.get("EDGEML_IPC_SANITIZE", "")
    if sanitizer not in SANITIZERS:
        raise SystemExit(f"EDGEML_IPC_SANITIZE={sanitizer!r}: must be one of {sorted(SANITIZERS)}")
    neutral = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "transports").glob("*.c"))
    headers = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "transports").glob("*.h"))
    return Extension(
        "edgeml_ipc.transports._core",
        sources=["edgeml_ipc/transports/_coremodule.c", *neutral],
        depends=headers,
        include_dirs=["transports"],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=FLAGS + SANITIZERS[sanitizer],
        extra_link_args=["-pthread", *SANITIZERS[sanitizer]],
        py_limited_api=True,
        optional=True,
    )


def rows() -> Extension:
    """Describe the extension module of the replay buffer: who may write rows, which are whole, the loops of sampling."""
    flags = SANITIZERS[os.environ.get("EDGEML_IPC_SANITIZE", "")]
    here = ROOT / "edgeml_ipc" / "data"
    return Extension(
        "edgeml_ipc.data._rows",
        sources=[path.relative_to(ROOT).as_posix() for path in sorted(here.glob("*.c"))],
        depends=[path.relative_to(ROOT).as_posix() for path in sorted(here.glob("*.h"))],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=[*FLAGS, "-O3", *flags],  # the tree's nodes are sums of eight: unrolled, they take two thirds
        extra_link_args=["-pthread", "-lm", *flags],
        py_limited_api=True,
        optional=True,
    )


def fast() -> Extension:
    """Describe the extension module of the codec: what it writes and reads most, compiled."""
    import numpy  # its headers, which this Python may lack where it builds without isolation; 2.0's serve every numpy from 1.22

    flags = SANITIZERS[os.environ.get("EDGEML_IPC_SANITIZE", "")]
    here = ROOT / "edgeml_ipc" / "codec"
    return Extension(
        "edgeml_ipc.codec._fast",
        sources=[path.relative_to(ROOT).as_posix() for path in sorted(here.glob("*.c"))],
        depends=[path.relative_to(ROOT).as_posix() for path in sorted(here.glob("*.h"))],
        include_dirs=[numpy.get_include()],
        define_macros=[("Py_LIMITED_API", "0x030B0000"), ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=flags,
        py_limited_api=True,
        optional=True,
    )


def warn(reason: object) -> None:
    """Tell, once and readably, that the installation goes on without the C core."""
    text = f"edgeml_ipc: installing WITHOUT the C core ({reason}): `auto` will be tcp, and a replay buffer stays in one process"
    print(f"\n{'*' * 100}\nWARNING {text}\n{'*' * 100}\n", file=sys.stderr, flush=True)


class BuildCore(build_ext):
    """`build_ext` for which a core that does not compile is a warning."""

    def build_extension(self, ext: Extension) -> None:
        """Compile `ext`, or remove what an earlier build left and warn."""
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            if self.inplace or self.editable_mode:
                (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            warn(f"the C compiler is missing or failed: {str(error)[:120]}")


reason = why_not()
if reason is not None:
    warn(reason)
    setup()
else:
    setup(
        ext_modules=[core(), rows(), fast()],
        cmdclass={"build_ext": BuildCore},
        options={"bdist_wheel": {"py_limited_api": STABLE_ABI}},
    )
