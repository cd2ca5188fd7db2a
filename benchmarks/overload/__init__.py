"""The arena: the same server under the same overload in a memory-limited cgroup, guarded in turn by different means.

``python -m benchmarks.overload --help``. ``scenarios`` says what is asked of the server, ``strategies`` what guards it,
``server`` and ``node/`` are what is asked, ``load`` asks, ``supervisor`` restarts what the kernel killed, ``results``
turns outcomes into figures, ``report`` and ``chart`` show them, ``judge`` compares them with what is promised,
``sweep`` finds the best fixed limits.
"""
