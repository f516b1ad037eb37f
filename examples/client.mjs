#!/usr/bin/env node
// Prints what is published to a channel: client.mjs HOST PORT CHANNEL.
// A token, if pushd asks for one, is taken from the environment variable PUSHD_TOKEN.

import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const [host, port, channel] = process.argv.slice(2);
if (!channel) {
  console.error("usage: client.mjs HOST PORT CHANNEL");
  process.exit(2);
}

// Yields lines. (readline would split them at U+2028, too.) One that was torn at the end is dropped.
async function* lines(socket) {
  let rest = "";
  for await (const text of socket.setEncoding("utf8")) {
    const parts = (rest + text).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

// Subscribes, and yields what pushd tells until the connection ends.
async function* events(lastId) {
  const socket = connect({ host, port });
  socket.setTimeout(10_000, () => socket.destroy(new Error("timed out")));
  try {
    for await (const line of lines(socket)) {
      const event = JSON.parse(line);
      if (event.type === "welcome") {
        socket.setTimeout(1000 * (2 * event.heartbeat + 1)); // nothing for so long: the connection is dead
        if (event.auth === "required") socket.write(`AUTH ${process.env.PUSHD_TOKEN ?? ""}\n`);
        const start = lastId ? ` FROM ${lastId}` : "";
        socket.write(`SUBSCRIBE ${JSON.stringify(channel)}${start}\n`);
      }
      yield event;
    }
  } catch (error) {
    console.error(`connection lost: ${error.message}`);
  }
}

// Prints a message, or says what is wrong.
function show(event) {
  switch (event.type) {
    case "message":
      process.stdout.write(event.data ?? Buffer.from(event.data_base64, "base64"));
      process.stdout.write("\n");
      break;
    case "gap":
      console.error(`gap: ${event.missed ?? "unknown how many"} messages missed (${event.reason})`);
      break;
    case "error":
      console.error(`error: ${event.message}`);
      if (!("retry_ms" in event)) process.exit(1); // another time would be no better
  }
}

let lastId;
let wait = 1000;
for (;;) {
  wait = Math.min(2 * wait, 30_000); // longer each time, until pushd says something
  for await (const event of events(lastId)) {
    lastId = event.id ?? lastId;
    wait = event.retry_ms ?? 500 + 1000 * Math.random();
    show(event);
  }
  await sleep(wait);
}
