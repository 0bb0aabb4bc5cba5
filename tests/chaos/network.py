"""The network between the workers and the client on one side, the database and Redis on the other: a proxy before each."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from chaos.schedule import FaultKind
from support.fault_proxy import Cut, Exchange, FaultProxy, never

CUTS = 0.3  # of all commits, while a network cuts
OTHERS = 0.02  # of all other exchanges
DELAY_S = 0.05  # for each answer, while a network is slow


class Network:
    """The proxy before one server; each fault gives what puts it right again."""

    def __init__(self, url: str, seed: int) -> None:
        """`url` is the server's, on this machine."""
        self._chance, self._lock = random.Random(f"network {seed}"), threading.Lock()
        self._address = urlsplit(url)
        self._proxy = FaultProxy(self._address.port or 0, postgres=self._address.scheme.startswith("postgresql"))

    @property
    def url(self) -> str:
        """The server's address by way of the proxy."""
        user = self._address.netloc.rpartition("@")[0]
        return self._address._replace(netloc=f"{user}@127.0.0.1:{self._proxy.port}").geturl()

    @property
    def cuts(self) -> int:
        """How many connections have been cut."""
        return self._proxy.cuts

    def inject(self, kind: FaultKind) -> Callable[[], object]:
        """Begin the fault; what ends it."""
        proxy = self._proxy
        if kind in (FaultKind.CUT_DATABASE, FaultKind.CUT_REDIS):
            proxy.cut_all()
            proxy.decide = self._cut_some
            return lambda: setattr(proxy, "decide", never)
        if kind in (FaultKind.SLOW_DATABASE, FaultKind.SLOW_REDIS):
            proxy.delay_s = DELAY_S
            return lambda: setattr(proxy, "delay_s", 0.0)
        proxy.silence()
        return proxy.hear

    def close(self) -> None:
        self._proxy.close()

    def _cut_some(self, exchange: Exchange) -> Cut | None:
        with self._lock:
            if self._chance.random() >= (CUTS if exchange.is_commit else OTHERS):
                return None
            return self._chance.choice(list(Cut))
