"""``python -m resource_monitor``: the same as the ``resource-monitor`` command."""

import sys

from resource_monitor.cli import main

if __name__ == "__main__":
    sys.exit(main())
