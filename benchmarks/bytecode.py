"""The package as it is where it is installed: with its bytecode. To compile at import takes memory that stays."""

import compileall
from importlib.util import find_spec
from pathlib import Path


def compile_package() -> None:
    """Compile what a checkout has not compiled yet; where nothing can be written, it is measured without."""
    spec = find_spec("resource_monitor")
    assert spec is not None  # what is measured is there
    for package in map(Path, spec.submodule_search_locations or ()):
        linked = (path for path in package.iterdir() if path.is_symlink())  # which compileall passes by
        for directory in (package, *linked):
            compileall.compile_dir(directory, quiet=2)
