"""Prints the limit, the used and the available bytes of every resource: the small API in use."""

from collections.abc import Callable

from resource_monitor import NotApplicable, Resource


def figure(read: Callable[[], int]) -> str:
    try:
        return str(read())
    except NotApplicable as reason:
        return f"not applicable: {reason}"


for resource in Resource:
    print(f"{resource.name}:")
    print(f"  limit: {figure(resource.limit)}")
    print(f"  used: {figure(resource.used)}")
    print(f"  available: {figure(resource.available)}")
