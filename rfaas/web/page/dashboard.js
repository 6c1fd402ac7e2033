"use strict";
// The dashboard: takes a key, follows /v1/live, shows each picture.
// All that comes from the server becomes text, never markup.

const byId = (id) => document.getElementById(id);
const RETRY_MAX_S = 15;
const SILENT_S = 5; // pictures come by the second

let picture = null;
let receivedAt = 0;
let following = null;

function made(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== "" && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Words and numbers -------------------------------------------------------------

function short(number) {
  if (number >= 1e9) return `${+(number / 1e9).toPrecision(3)}G`;
  if (number >= 1e6) return `${+(number / 1e6).toPrecision(3)}M`;
  if (number >= 1e4) return `${+(number / 1e3).toPrecision(3)}k`;
  return `${number >= 100 ? Math.round(number) : +number.toPrecision(3)}`;
}

function span(microseconds) {
  if (microseconds >= 1e6) return `${+(microseconds / 1e6).toPrecision(3)} s`;
  if (microseconds >= 1e3) return `${+(microseconds / 1e3).toPrecision(3)} ms`;
  if (microseconds >= 1) return `${+microseconds.toPrecision(3)} µs`;
  return microseconds > 0 ? `${+(microseconds * 1e3).toPrecision(3)} ns` : "0";
}

function clock(seconds) {
  const left = Math.max(0, seconds);
  if (left < 60) return `${left.toFixed(1)} s`;
  const whole = Math.round(left);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (part) => String(part).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// Parts of the page -----------------------------------------------------------------

function showFigures({ status, samples }) {
  const facts = status.facts;
  const last = samples[samples.length - 1];
  const figures = [
    ["Nodes", `${facts["nodes up"] ?? 0}${facts["nodes lost"] ? `, ${facts["nodes lost"]} lost` : ""}`],
    ["Cores free", `${facts["cores free"] ?? 0} of ${facts["cores"] ?? 0}`],
    ["Cores hot", last ? short(Math.round(last.cores_hot * 10) / 10) : "0"],
    ["Leases", short(facts["leases live"] ?? 0)],
    ["Calls per second", last ? short(last.calls_per_s) : "0"],
    ["Store", facts["store state"] ?? ""],
  ];
  byId("figures").replaceChildren(
    ...figures.map(([name, value]) => made("div", {}, made("dt", {}, name), made("dd", {}, value))),
  );
}

// Cores of a node by state; the parts add up to all of them.
function parts(node, hot) {
  if (node.state === "lost") return [["lost", node.cores]];
  const leased = node.cores - node.cores_free;
  const busy = Math.min(leased, Math.round(hot * 10) / 10);
  const free = node.state === "draining" ? "draining" : "free";
  return [["hot", busy], ["leased", Math.round((leased - busy) * 10) / 10], [free, node.cores_free]];
}

function showNodes({ nodes, hot, nodes_more: more }) {
  byId("nodes").replaceChildren(...nodes.map((node) => {
    const found = parts(node, hot[node.node] ?? 0).filter(([, cores]) => cores > 0);
    const words = found.map(([state, cores]) => `${cores} ${state}`).join(", ");
    const bar = made("div", { class: "bar", role: "img", "aria-label": `${node.node}: ${words}` });
    for (const [state, cores] of found) {
      const part = made("span", { class: state, title: `${cores} ${state}` });
      part.style.flexGrow = cores;
      bar.append(part);
    }
    return made("li", { "data-node": node.node, "data-state": node.state },
      made("span", { class: "name", title: node.address }, node.node), bar,
      made("span", { class: "said" }, `${count(node.cores, "core")}: ${words}${gpusOf(node)}`));
  }));
  byId("nodes-more").textContent = nodes.length ? (more ? `and ${count(more, "more node")}` : "")
    : "No node has joined yet: rfaas serve --role executor";
}

function gpusOf(node) {
  return node.gpus ? `; ${node.gpus_free} of ${count(node.gpus, "GPU")} free` : "";
}

function showPlots({ samples, at_s: now }) {
  const last = samples[samples.length - 1] ?? { calls_per_s: 0, call_us: 0, grants: 0, grant_p99_ms: 0 };
  const called = (sample) => (sample.calls_per_s > 0 ? sample.call_us : null);
  const granted = (sample) => (sample.grants > 0 ? sample.grant_p99_ms * 1e3 : null);
  const texts = {
    calls: short(last.calls_per_s),
    time: last.calls_per_s > 0 ? span(last.call_us) : "no calls",
    grant: last.grants > 0 ? span(last.grant_p99_ms * 1e3) : "no grants",
  };
  plot(byId("calls"), samples.map((one) => [one.at_s, one.calls_per_s]), now, short);
  plot(byId("time"), samples.map((one) => [one.at_s, called(one)]), now, span);
  plot(byId("grant"), samples.map((one) => [one.at_s, granted(one)]), now, span);
  for (const [id, text] of Object.entries(texts)) {
    byId(`${id}-now`).textContent = text;
    byId(id).setAttribute("aria-label", `the last two minutes; now ${text}`);
  }
}

let longest = new Map(); // by lease, the most that it had left: since it was last renewed

function showLeases({ leases, leases_more: more }) {
  const seen = new Map();
  byId("leases").tBodies[0].replaceChildren(...leases.map((lease) => {
    const state = lease.state === "live" ? [] : [" ", made("span", { class: "state" }, lease.state)];
    const whole = Math.max(lease.remaining_s, longest.get(lease.lease) ?? 0);
    seen.set(lease.lease, whole);
    const progress = made("progress", { max: whole || 1, "aria-label": "time left" });
    const left = made("span", { class: "left" });
    const row = made("tr", { "data-lease": lease.lease },
      made("td", {}, made("code", { title: lease.lease }, lease.lease.slice(0, 8)), ...state),
      made("td", {}, lease.client),
      made("td", { "data-name": "on" }, lease.node),
      made("td", { class: "number", "data-name": "cores" }, `${lease.cores}`),
      made("td", { class: "number", "data-name": "calls" }, short(lease.usage.calls)),
      made("td", {}, made("div", { class: "clock" }, left, progress)));
    row.remaining = lease.remaining_s;
    return row;
  }));
  longest = seen;
  byId("leases-more").textContent = leases.length ? (more ? `and ${count(more, "more lease")}` : "")
    : "No lease is live.";
  runClocks();
}

// Between two pictures the clocks run down by themselves.
function runClocks() {
  const past = (performance.now() - receivedAt) / 1e3;
  for (const row of byId("leases").tBodies[0].rows) {
    const left = Math.max(0, row.remaining - past);
    row.querySelector(".left").textContent = clock(left);
    row.querySelector("progress").value = left;
  }
}

const WORDS = {
  "node-joined": "joined", "node-lost": "lost", "node-drained": "drains", "node-undrained": "takes leases again",
  "node-removed": "removed", "lease-queued": "waits", "lease-granted": "granted", "lease-renewed": "renewed",
  "lease-terminating": "is about to end", "lease-ended": "ended", "lease-refused": "refused",
};

function sentence(event) {
  const what = event.kind.startsWith("node-") ? `node ${event.node}`
    : `lease ${event.lease.slice(0, 8)}`;
  const rest = [];
  if (event.kind.startsWith("lease-")) {
    if (event.cores) rest.push(count(event.cores, "core"));
    if (event.node) rest.push(`on ${event.node}`);
    if (event.client) rest.push(`for ${event.client}`);
  }
  if (event.cause) rest.push(`(${event.cause})`);
  return [what, WORDS[event.kind] ?? event.kind, ...rest].join(" ");
}

function showEvents({ events }) {
  byId("events").replaceChildren(...events.slice().reverse().map((event) => {
    const at = new Date(event.at_s * 1e3);
    return made("li", { "data-kind": event.kind },
      made("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })),
      made("span", {}, sentence(event)));
  }));
}

function show(found) {
  picture = found;
  receivedAt = performance.now();
  byId("place").textContent = `on ${found.status.name}`;
  for (const part of [showFigures, showNodes, showPlots, showLeases, showEvents]) part(found);
  byId("view").hidden = false;
  byId("door").hidden = true;
  say("live", "live");
}

function say(text, kind) {
  byId("link").textContent = text;
  byId("link").className = kind;
}

// The stream --------------------------------------------------------------------------

// Server-sent events by fetch: EventSource sends no Authorization.
async function follow(key, signal) {
  const answer = await fetch("v1/live", { headers: { Authorization: `Bearer ${key}` }, signal });
  if (!answer.ok) {
    const fault = await answer.json().catch(() => ({ text: `status ${answer.status}` }));
    throw Object.assign(new Error(fault.text), { refused: answer.status < 500 });
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const one of whole) {
      const data = one.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (one.startsWith("event: picture")) show(JSON.parse(data));
      else if (one.startsWith("event: full")) throw new Error(JSON.parse(data).text);
    }
  }
}

async function watch(key) {
  following?.abort();
  const own = following = new AbortController();
  sessionStorage.setItem("rfaas-key", key);
  for (let pause = 1; own === following; pause = Math.min(RETRY_MAX_S, 2 * pause)) {
    const attempt = new AbortController();
    own.signal.addEventListener("abort", () => attempt.abort());
    const guard = setInterval(() => {
      if (performance.now() - receivedAt > SILENT_S * 1e3) attempt.abort();
    }, 1000);
    try {
      receivedAt = performance.now();
      await follow(key, attempt.signal);
    } catch (error) {
      if (own !== following) return;
      if (error.refused) return askAgain(error.message);
    } finally {
      clearInterval(guard);
    }
    if (picture) pause = 1;
    picture = null;
    say(`lost the resource manager, trying again in ${pause} s`, "lost");
    await new Promise((resolve) => setTimeout(resolve, pause * 1e3));
  }
}

function askAgain(why) {
  following = null;
  sessionStorage.removeItem("rfaas-key");
  byId("refusal").textContent = why;
  byId("door").hidden = false;
  byId("view").hidden = true;
  say("not connected", "");
  byId("key").focus();
}

byId("door").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("refusal").textContent = "";
  watch(byId("key").value.trim());
  byId("key").value = "";
});
setInterval(runClocks, 200);

// A key after # never leaves the browser; it is taken out of the address at once.
const handed = new URLSearchParams(location.hash.slice(1)).get("key");
if (handed) history.replaceState(null, "", location.pathname);
const known = handed ?? sessionStorage.getItem("rfaas-key");
if (known) watch(known);
