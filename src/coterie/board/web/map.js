"use strict";
// The map of prompts: similar ones lie near each other; colours follow the run with a slider over its steps.

const MAP_MODES = {
  region: { label: "region", help: "colours are the regions with the most prompts on the map; the others are grey" },
  reward: { label: "reward that came", help: "the stronger, the higher the mean reward of the newest attempts" },
  past_pass: { label: "pass rate before", help: "the stronger, the more of the attempts before were right; recent ones count more" },
  error: { label: "came less expected", help: "blue where more came than was expected, orange where less" },
  advantage: { label: "advantage", help: "blue is reinforced, orange is discouraged" },
};
const MAP_COLOURS = 5;

/** Of a prompt's visits the newest up to a step; null before the first. */
function visitAt(visits, step) {
  if (!visits.step) return null;
  let at = -1;
  while (at + 1 < visits.step.length && visits.step[at + 1] <= step) at += 1;
  if (at < 0) return null;
  const value = (key) => visits[key][at];
  const [reward, expected] = [value("reward"), value("expected")];
  return { step: value("step"), reward, expected, advantage: value("advantage"), past_pass: value("past_pass"), region: value("region"), error: reward === null || expected === null ? null : reward - expected };
}

/** Places on the map: those that fall on each other are laid around their place as the seeds of a sunflower are. */
function scattered(places) {
  const stacked = new Map();
  return places.map(([x, y]) => {
    const spot = `${Math.round(x / 3)} ${Math.round(y / 3)}`;
    const before = stacked.get(spot) || 0;
    stacked.set(spot, before + 1);
    const [far, turn] = [Math.min(6 * Math.sqrt(before), 60), 2.399963 * before]; // the golden angle
    return [x + far * Math.cos(turn), y + far * Math.sin(turn)];
  });
}

function PromptMap({ name }) {
  const state = useAnswer("map", { run: name }, name);
  return html`<section><h2>Map of prompts</h2><${Answer} state=${state}>${(value) =>
    value.prompts.length ? html`<${MapOf} name=${name} value=${value} />` : html`<p class="quiet">This run has stored no embeddings of prompts, or of fewer than three.</p>`}<//></section>`;
}

function MapOf({ name, value }) {
  const has = (key) => value.prompts.some((prompt) => prompt.visits[key] && prompt.visits[key].some((item) => item !== null));
  const modes = Object.keys(MAP_MODES).filter((key) => (key === "error" ? has("expected") : has(key)));
  const [mode, setMode] = useState(modes[0] || "reward");
  const [at, setAt] = useState(value.steps.length - 1);
  const [picked, setPicked] = useState(null);
  const place = Math.min(at, value.steps.length - 1);
  const step = value.steps[place];
  const points = useMemo(() => value.prompts.map((prompt) => ({ ...prompt, now: visitAt(prompt.visits, step) })), [value, step]);
  const counts = new Map();
  for (const { now } of points) if (now && now.region !== null) counts.set(now.region, (counts.get(now.region) || 0) + 1);
  const busiest = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MAP_COLOURS).map(([region]) => region);
  const largest = mode === "region" ? 1 : Math.max(1e-9, ...value.prompts.flatMap((prompt) => prompt.visits.step ? prompt.visits.step.map((_, index) => Math.abs(visitAt(prompt.visits, prompt.visits.step[index])[mode] || 0)) : []));
  const paint = (now) => {
    if (!now) return ["unseen", 1];
    if (mode === "region") return [busiest.includes(now.region) ? `fill-${busiest.indexOf(now.region) + 1}` : "other", 0.85];
    const [side, strength] = cellClass(mode === "error" || mode === "advantage" ? "error" : "reward", now[mode] === null ? null : now[mode] / largest / (mode === "error" || mode === "advantage" ? 2 : 1));
    return [side ? `dot-${side}` : "unseen", 0.15 + 0.85 * strength];
  };
  const xs = value.prompts.map((prompt) => prompt.x);
  const ys = value.prompts.map((prompt) => prompt.y);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const places = useMemo(() => scattered(value.prompts.map(({ x, y }) => [68 + (464 * (x - left)) / (right - left || 1), 252 - (184 * (y - low)) / (high - low || 1)])), [value]);
  const asked = points.filter(({ now }) => now).length;
  const chosen = picked && points.find((prompt) => prompt.id === picked);
  const label = `Map of ${points.length} prompts after step ${step}, ${asked} of them asked so far, coloured by ${MAP_MODES[mode].label}`;
  return html`
    <p class="quiet">Similar prompts lie near each other: the two directions in which their ${value.kind === "policy" ? "hidden states in the model" : "words"} differ most, ${Math.round(100 * value.shares[0])} % and ${Math.round(100 * value.shares[1])} % of the variance. Circles are prompts that were not asked yet; equal ones stand around their place.${value.files[0] < value.files[1] ? ` Drawn are ${number(points.length)} prompts of ${number(value.files[0])} of the ${number(value.files[1])} steps that met new ones.` : value.left_out ? ` ${number(value.left_out)} prompts are left out.` : ""}</p>
    <fieldset class="tools"><legend>Colour</legend>${modes.map((key) => html`<label><input type="radio" name="map-mode" checked=${mode === key} onChange=${() => setMode(key)} /> ${MAP_MODES[key].label}</label>`)}</fieldset>
    <div class="tools"><label>After step <span class="at">${step}</span> <input type="range" aria-label="After step" aria-valuetext=${`step ${step}`} min="0" max=${value.steps.length - 1} value=${place} disabled=${value.steps.length < 2} onInput=${(event) => setAt(Number(event.target.value))} /></label>
      <span class="quiet small">${asked} of ${points.length} asked; ${MAP_MODES[mode].help}</span></div>
    <svg class="map" viewBox="0 0 600 320" role="img" aria-label=${label} onClick=${(event) => event.target.dataset.id !== undefined && setPicked(event.target.dataset.id)}>
      ${points.map((prompt, index) => ({ ...prompt, place: places[index] })).sort((a, b) => Boolean(a.now) - Boolean(b.now)).map((prompt) => {
        const [kind, strength] = paint(prompt.now);
        return html`<circle key=${prompt.id} data-id=${prompt.id} class="dot ${kind} ${prompt.id === picked ? "picked" : ""} ${prompt.now && prompt.now.step === step ? "fresh" : ""}" cx=${prompt.place[0].toFixed(1)} cy=${prompt.place[1].toFixed(1)} r=${prompt.id === picked ? 6 : 4} style=${{ fillOpacity: strength }}><title>${prompt.id}: ${prompt.text}</title></circle>`;
      })}</svg>
    ${mode === "region" && html`<ul class="keys">${busiest.map((region, index) => html`<li><span class="key fill-${index + 1}"></span>${value.regions[region]} (${counts.get(region)})</li>`)}${counts.size > busiest.length && html`<li><span class="key other"></span>${counts.size - busiest.length} more</li>`}</ul>`}
    <div aria-live="polite">${chosen ? html`<${Facts} rows=${[
      ["prompt", html`<a href=${link(["run", name, "prompt"], { prompt: chosen.id })}>${chosen.id}</a>`], ["text", chosen.text], ["task", chosen.task],
      ["newest attempt", chosen.now ? `step ${chosen.now.step}` : "none yet"], ["reward", chosen.now ? number(chosen.now.reward) : ""], ["expected", chosen.now && chosen.now.expected !== null ? number(chosen.now.expected) : ""],
      ["region", chosen.now && chosen.now.region !== null ? value.regions[chosen.now.region] : ""],
    ]} />` : html`<p class="quiet small">Click a prompt to see what it is. The table below has them all.</p>`}</div>`;
}
