"""`python -m forebay.dashboard`: Flower alone, with every setting read as usual."""

import sys

from forebay.contract.errors import ForebayError
from forebay.contract.settings import Settings


def main() -> int:
    """Run until SIGTERM or Ctrl-C; the exit status, 1 with one line on stderr when it cannot run."""
    try:
        from forebay.dashboard.flower.server import serve

        settings = Settings.load()
        return serve(settings, settings.dashboard_host, settings.dashboard_port)
    except ForebayError as error:
        sys.stderr.write(f"forebay dashboard: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
