"""A faulty proxy in a process of its own: does harm for some seconds, by a seed, and then none."""

import sys
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from tests.faults import FaultyProxy, Kind, run, schedule

SCHEDULE_SECONDS = 4.0


async def _play(reactor: Any, target: str, seed: str, seconds: str) -> None:
    random = Random(int(seed))
    async with FaultyProxy(reactor, int(target)) as proxy:
        print(f"Proxy on {proxy.port}", flush=True)
        end = reactor.seconds() + float(seconds)
        while (began := reactor.seconds()) < end - SCHEDULE_SECONDS:
            faults = schedule(random.randrange(1 << 32), SCHEDULE_SECONDS)
            # What is changed on its way is nobody's fault.
            await run(proxy, [fault for fault in faults if fault.kind is not Kind.CORRUPT], random)
            await deferLater(reactor, max(0.0, began + SCHEDULE_SECONDS - reactor.seconds()))
        print("Healed", flush=True)
        await Deferred[None]()


def main() -> None:
    """Stand before the server on a port of loopback, with a seed, for some seconds."""
    react(lambda reactor: Deferred.fromCoroutine(_play(reactor, *sys.argv[1:])))


if __name__ == "__main__":
    main()
