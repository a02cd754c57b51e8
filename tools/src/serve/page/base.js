"use strict";
// Names of files and of devices are text, whatever they contain: nothing here is parsed as HTML.
const token = new URLSearchParams(location.search).get("token") || "";
const STATE_MS = 1000, FILES_MS = 2500, HISTORY_S = 120, COLOURS = 8;
const $ = id => document.getElementById(id);
const history_ = [];
let state = null, files = [], filesComplete = true, chosen = null, segments = null, staleSince = 0;

function h(tag, attributes, ...children) {
  const svg = ["svg", "path", "rect", "line", "text", "title", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}
const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };

function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit++; }
  return (unit && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[unit];
}
function time(ns) {
  const of = (n, unit) => (n < 9.95 ? n.toFixed(1) : Math.round(n)) + " " + unit;
  return ns < 1e3 ? ns + " ns" : ns < 1e6 ? of(ns / 1e3, "µs") : ns < 1e9 ? of(ns / 1e6, "ms") : of(ns / 1e9, "s");
}
function age(ms) {
  const s = Math.round(ms / 1000);
  return s < 60 ? s + " s" : s < 3600 ? Math.floor(s / 60) + " min" : s < 86400 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86400) + " d";
}
const many = (n, noun) => n + " " + noun + (n === 1 ? "" : "s");
const sum = (list, of) => list.reduce((all, one) => all + of(one), 0);
