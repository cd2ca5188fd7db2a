"""The unit and integration tests on every supported Python, against what is installed and not the checkout beside them.

``nox -s tests-3.12 -- tests/unit/test_gate.py``: with arguments for pytest. Python 3.11 is what ``make test`` runs on.
"""

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
# One wheel (abi3) has to serve all of them; where WHEEL names none, the checkout is built for each.
WHEEL = os.environ.get("WHEEL", ".")
NEEDED = ["tests", "examples", "benchmarks", "pyproject.toml"]

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    # bytecode of what is used alone, once that is, takes less time than that of everything
    session.env["PYTHONDONTWRITEBYTECODE"] = None
    session.install("--no-compile", f"{WHEEL}[demo]", *nox.project.dependency_groups(nox.project.load_toml(), "test"))
    elsewhere = Path(session.create_tmp())
    for name in NEEDED:
        target = elsewhere / name
        if Path(name).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(name, target)
    session.chdir(elsewhere)
    session.run("pytest", "-q", *(session.posargs or ["tests/unit", "tests/integration"]))
