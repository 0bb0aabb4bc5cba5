"""The Devices page: every worker with the device it owns, what it serves and runs, and when it was last heard of."""

from __future__ import annotations

import asyncio

from forebay.dashboard.pages import Page

RECENT_S = 86_400.0


class DevicesPage(Page):
    """`/devices`. Flower's `/workers` shows the same processes as Celery sees them."""

    tab = "devices"

    async def get(self) -> None:
        """The page, or the part that changes."""
        alive_s = 3 * self.forebay.heartbeat_s
        workers, held = await asyncio.gather(
            self.ledger.ask("all workers", lambda ears: ears.workers.alive(RECENT_S)),
            self.ledger.ask("now", lambda ears: ears.overview.now()),
        )
        self.show("devices", workers, held, workers=workers.value, held=held.value, now=self.now(), alive_s=alive_s)
