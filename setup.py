"""The part of the build that pyproject.toml cannot say: the C extensions and their stable-ABI tag."""

import sysconfig

from setuptools import Extension, setup

# A free-threaded interpreter has no stable ABI before PEP 803: there the wheel is built for that version alone.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

TURN = "resource_monitor/_native/turn"
SOURCES = [
    "module",
    "errors",
    "lock",
    "core",
    "standing",
    "names",
    "stepping",
    "sender",
    "asgi",
    "passage",
    "wsgi",
    "accept_queue",
]

setup(
    cffi_modules=["resource_monitor/_native/build.py:ffibuilder"],
    ext_modules=[
        Extension(
            "resource_monitor._native._turn",
            sources=[f"{TURN}/{name}.c" for name in SOURCES],
            depends=[f"{TURN}/{name}.h" for name in ("turn", "names", "content_length", "stepping", "spares", "asgi")],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if abi3 else [],
            py_limited_api=abi3,
            # what it calls most are the interpreter's functions
            extra_compile_args=["-std=gnu11", "-O2", "-fno-plt", "-Wall", "-Wextra", "-fvisibility=hidden"],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
