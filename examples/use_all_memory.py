"""Takes memory until hardly any is available, gives it back, and shows that it is available again.

Run it in a container with a memory limit. Where only the machine's own memory ends it, it would take that from everyone
else on the machine, so it refuses unless told ``--anyway``.
"""

from __future__ import annotations

import argparse
import sys

from resource_monitor import Resource, default_monitor

BLOCK = 2_000_000
FLOOR = 10_000_000


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anyway", action="store_true", help="also where only the machine's memory is the limit")
    if not parser.parse_args().anyway and not limited():
        return "Only the machine's own memory limits this process; run in a container with a memory limit, or --anyway."
    blocks: list[bytearray] = []
    while show() > FLOOR + BLOCK:
        blocks.append(bytearray(b"x") * BLOCK)  # written, not only reserved: the kernel charges pages when touched
    print("Clearing")
    blocks.clear()
    show()
    return None


def limited() -> bool:
    return any(limit.value is not None and limit.kind != "host memory" for limit in default_monitor().limits())


def show() -> int:
    available = Resource.MEMORY.available()
    print(f"Available: {available}", flush=True)
    return available


if __name__ == "__main__":
    sys.exit(main())
