"""Reports: what a client of the control protocol is told about its subscriptions as a whole."""

from collections.abc import Mapping

from pushd.channels import Channels
from pushd.events import event, named, show_time
from pushd.message import Topic
from pushd.subscription import Subscription
from pushd.tokens import Grant


def heartbeat(subscriptions: Mapping[Topic, Subscription], channels: Channels) -> bytes:
    """Return the event that says what the client should have by now."""
    offsets: dict[str, dict[str, int]] = {"channel": {}, "pattern": {}}
    behind: dict[str, dict[str, int]] = {"channel": {}, "pattern": {}}
    for topic, subscription in subscriptions.items():
        ((kind, name),) = named(topic).items()
        head = offsets[kind][name] = _head(subscription)
        if left := head - subscription.position.offset:
            behind[kind][name] = left
    more = {
        "behind": behind["channel"],
        "pattern_offsets": offsets["pattern"],
        "pattern_behind": behind["pattern"],
    }
    return event(
        "heartbeat",
        **upstream(subscriptions, channels),
        offsets=offsets["channel"],
        **{key: value for key, value in more.items() if value},
    )


def status(
    peer: str, grant: Grant | None, subscriptions: Mapping[Topic, Subscription], channels: Channels
) -> bytes:
    """Return the event that says all that pushd knows of a client."""
    who = {"name": grant.name, "expires": show_time(grant.expires)} if grant else {}
    listed = [
        {
            **named(topic),
            "offset": subscription.position.offset,
            "head": _head(subscription),
            "missed": subscription.missed,
            "slow": subscription.policy.value,
        }
        for topic, subscription in subscriptions.items()
    ]
    return event("status", client=peer, **who, **upstream(subscriptions, channels), subscriptions=listed)


def upstream(topics: Mapping[Topic, Subscription], channels: Channels) -> dict[str, str]:
    """Return whether all of some topics have an upstream, as members of an event."""
    since = channels.down_since(topics)
    return {"upstream": "up"} if since is None else {"upstream": "down", "since": show_time(since)}


def _head(subscription: Subscription) -> int:
    log = subscription.feed.log
    return log.position(log.head).offset
