"use strict";
// Shared by all pages: records from the server or from the exported page, the address, the theme, numbers as text.
// The files are plain scripts that share their top-level names; index.html loads them in order.

const { h, render } = preact;
const { useEffect, useMemo, useRef, useState } = preactHooks;
const { signal } = preactSignals;
const html = htm.bind(h);

// ---- records

const embedded = document.getElementById("records");
const records = embedded ? JSON.parse(embedded.textContent) : null;

/** The name of a question in an exported page; `answer_key` of board/static_export.py makes the same. */
function answerKey(question, words) {
  const pairs = Object.keys(words).sort().map((name) => `${name}=${words[name]}`);
  return [question, ...pairs].join("\n");
}

async function get(question, words = {}) {
  const asked = {};
  for (const [name, value] of Object.entries(words))
    if (value !== undefined && value !== null && value !== "" && value !== false) asked[name] = String(value);
  if (records) {
    const key = answerKey(question, asked);
    if (key in records) return records[key];
    throw new Error("This is not part of the exported page; `coterie board` shows all of the run.");
  }
  let response;
  try {
    response = await fetch(`/api/${question}?${new URLSearchParams(asked)}`, { headers: { accept: "application/json" } });
  } catch {
    throw new Error("The board does not answer any more. Start it again with `coterie board`.");
  }
  if (response.status === 403) throw new Error("The board was started anew: open the address that it printed.");
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || `The board answered ${response.status}.`);
  return body;
}

const ticks = signal({});
const live = signal(records ? "exported" : "connecting");

/** Listen to the server: of each run that changes, a tick. */
function listen() {
  if (records) return;
  const source = new EventSource("/api/changes");
  source.addEventListener("hello", () => (live.value = "live"));
  source.addEventListener("change", (event) => {
    const next = { ...ticks.value };
    for (const name of [...JSON.parse(event.data), "*"]) next[name] = (next[name] || 0) + 1;
    ticks.value = next;
  });
  source.onerror = () => (live.value = "lost");
}

const SHARE = 30;
const paused = {};

/** The answer to a question, asked again when `watch` (a run's name, or *) changes; {value, error, loading}.

Without a question nothing is asked. An answer that took t to arrive is not asked for again within 30 t: watching must not slow the training down. */
function useAnswer(question, words, watch) {
  const key = answerKey(question, words);
  const tick = watch ? ticks.value[watch] || 0 : 0;
  const [state, setState] = useState({ key: null });
  useEffect(() => {
    if (!question) return undefined;
    let gone = false;
    const ask = async () => {
      const started = performance.now();
      try {
        const value = await get(question, words);
        if (!gone) setState({ key, value });
      } catch (error) {
        if (!gone) setState((before) => ({ key, error: error.message, value: before.key === key ? before.value : undefined }));
      }
      paused[key] = performance.now() + Math.min(SHARE * (performance.now() - started), 20000);
    };
    const wait = state.key === key ? Math.max(0, (paused[key] || 0) - performance.now()) : 0;
    const timer = setTimeout(ask, wait);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [key, tick]);
  return state.key === key ? state : { loading: true };
}

// ---- the address: #/part/part?name=value

function parseAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    parts: path.split("/").filter(Boolean).map(decodeURIComponent),
    words: Object.fromEntries(new URLSearchParams(query || "")),
  };
}

const address = signal(parseAddress());
addEventListener("hashchange", () => {
  address.value = parseAddress();
});

function link(parts, words = {}) {
  const kept = Object.entries(words).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(kept).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

function go(parts, words) {
  location.hash = link(parts, words);
}

// ---- theme

const stored = (name) => {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // a page from a file may have no storage
  }
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = signal(stored("theme") || "");
const shade = () => theme.value || (dark.matches ? "dark" : "light");

function applyTheme() {
  document.documentElement.dataset.theme = shade();
}

function switchTheme() {
  theme.value = shade() === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("theme", theme.value);
  } catch {
    // it lasts as long as the page then
  }
  applyTheme();
}
dark.addEventListener("change", applyTheme);
applyTheme();

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// ---- text

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

const signed = (value, digits = 3) =>
  value === null || value === undefined ? "–" : `${value > 0 ? "+" : ""}${number(value, digits)}`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${number(seconds, 2)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${number(seconds / 3600, 2)} h`;
}

function setting(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value : JSON.stringify(value);
}

const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");

// ---- small parts

/** A text of the docs or the doctor: what stands in backquotes is code. */
const Words = ({ text }) => text.split("`").map((part, place) => (place % 2 ? html`<code>${part}</code>` : part));

function Answer({ state, children }) {
  if (state.value === undefined)
    return state.error ? html`<p class="problem" role="alert">${state.error}</p>` : html`<p class="quiet" role="status">Reading …</p>`;
  return html`${state.error && html`<p class="problem" role="alert">${state.error}</p>`}${children(state.value)}`;
}

const State = ({ state }) => html`<span class="state ${state}">${state}</span>`;

function Progress({ step, steps }) {
  const share = steps ? Math.min(1, step / steps) : 0;
  return html`<span class="progress"
    ><span class="bar" aria-hidden="true"><span style=${{ width: `${100 * share}%` }}></span></span
    ><span class="count">${number(step)} / ${number(steps)}</span></span
  >`;
}

/** A line of points [[x, y], …] as a small picture. */
function Spark({ points, label }) {
  if (!points || points.length < 2) return html`<span class="quiet">–</span>`;
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const [left, right, low, high] = [xs[0], xs[xs.length - 1], Math.min(...ys), Math.max(...ys)];
  const path = points
    .map(([x, y], index) => {
      const across = ((x - left) / (right - left || 1)) * 116 + 2;
      const down = 26 - ((y - low) / (high - low || 1)) * 24;
      return `${index ? "L" : "M"}${across.toFixed(1)} ${down.toFixed(1)}`;
    })
    .join("");
  const text = `${label}: from ${number(ys[0])} to ${number(ys[ys.length - 1])}`;
  return html`<svg class="spark" viewBox="0 0 120 28" role="img" aria-label=${text}><title>${text}</title><path d=${path} /></svg>`;
}

function Facts({ rows }) {
  return html`<dl class="facts">
    ${rows
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}
