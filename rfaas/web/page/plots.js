"use strict";
// Line plots of the last two minutes, as SVG; no library, since there are three of them.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300, HEIGHT = 110, LEFT = 40, RIGHT = 4, TOP = 12, BOTTOM = 16;
const SPAN_S = 120;

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The least of 1, 2, 5, 10 ... that is no less than the value.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * 0.9999) * power;
}

// points: [seconds since 1970, value or null], the oldest first; format: a number to its text.
function plot(svg, points, now, format) {
  const top = ceiling(Math.max(0, ...points.map(([, value]) => value ?? 0)));
  const x = (at) => LEFT + (WIDTH - LEFT - RIGHT) * Math.min(1, Math.max(0, 1 - (now - at) / SPAN_S));
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    parts.push(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    parts.push(shape("text", { x: LEFT - 5, y: at + 3.5, "text-anchor": "end" }, format(top * share)));
  }
  parts.push(shape("text", { x: LEFT, y: HEIGHT - 2 }, "2 min ago"));
  parts.push(shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 2, "text-anchor": "end" }, "now"));
  // A gap where nothing was measured stays a gap.
  let run = [];
  const close = () => {
    if (run.length) {
      const line = run.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" ");
      const floor = y(0);
      const [first, last] = [run[0][0], run[run.length - 1][0]];
      if (run.length === 1) parts.push(shape("circle", { class: "dot", cx: first, cy: run[0][1], r: 2 }));
      parts.push(shape("polygon", { class: "area", points: `${first},${floor} ${line} ${last},${floor}` }));
      parts.push(shape("polyline", { class: "line", points: line }));
    }
    run = [];
  };
  for (const [at, value] of points) {
    if (now - at > SPAN_S) continue;
    if (value === null) close();
    else run.push([x(at), y(value)]);
  }
  close();
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.replaceChildren(...parts);
}
