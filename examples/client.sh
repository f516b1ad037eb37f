#!/usr/bin/env bash
# Prints what is published to a channel: client.sh HOST PORT CHANNEL. Needs nc (OpenBSD's) and jq.
# A token, if pushd asks for one, is taken from the environment variable PUSHD_TOKEN.

if [ $# -ne 3 ]; then
    echo "usage: client.sh HOST PORT CHANNEL" >&2
    exit 2
fi
host=$1 port=$2 channel=$3
last_id=

commands() {
    if [ -n "$PUSHD_TOKEN" ]; then echo "AUTH $PUSHD_TOKEN"; fi
    echo "SUBSCRIBE $(jq -n --arg name "$channel" '$name')${last_id:+ FROM $last_id}"
}

# Subscribes, and prints what pushd tells: of each event the type, the id, the seconds after which to come back
# ("-" where there are none), and a text. Nothing for 65 seconds, in which two heartbeats come: it is dead.
events() {
    commands | nc -w 65 "$host" "$port" | jq --unbuffered --raw-output '
        if .type == "gap" then .text = "\(.missed // "unknown how many") messages missed (\(.reason))" else . end
        | [.type, .id // "-", (.retry_ms | if . then . / 1000 else "-" end),
           .text // .data // .data_base64 // .message // ""]
        | @tsv'
}

while true; do
    wait=1
    while IFS=$'\t' read -r type id retry text; do
        if [ "$id" != - ]; then last_id=$id; fi
        if [ "$retry" != - ]; then wait=$retry; fi
        case $type in
            message) printf '%b\n' "$text" ;; # %b takes back what @tsv has escaped
            gap) echo "gap: $text" >&2 ;;
            error)
                echo "error: $text" >&2
                if [ "$retry" = - ]; then exit 1; fi # another time would be no better
                ;;
        esac
    done < <(events)
    sleep "$wait"
done
