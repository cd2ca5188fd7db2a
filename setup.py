"""The part of the build that pyproject.toml cannot say: the C extension and its stable-ABI tag."""

import sysconfig

from setuptools import setup

# A free-threaded interpreter has no stable ABI before PEP 803: there the wheel is built for that version alone.
abi3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["resource_monitor/_native/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
