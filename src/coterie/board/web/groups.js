"use strict";
// Regions of similar prompts through the run, the tree at a checkpoint, and the prompts that were asked.

const SHOWN = { reward: "reward that came", expected: "reward that was expected", error: "came less expected" };

function Groups({ name, words }) {
  const state = useAnswer("regions", { run: name }, name);
  return html`<${RunHead} name=${name} tab="groups" /><h1>Groups</h1>
    <${Answer} state=${state}>${(value) => html`<${Strips} name=${name} value=${value} />
      ${value.checkpoints.length ? html`<${Trees} name=${name} steps=${value.checkpoints} />` : html`<section><h2>Tree of regions</h2><p class="quiet">No checkpoint of this run holds a tree: it is kept by runs with <code>grouping.preset = "mixture"</code>.</p></section>`}`}<//>
    <${PromptMap} name=${name} />
    <${Prompts} name=${name} />`;
}

/** Colour of a cell: a share of the range, or a signed difference. */
function cellClass(shown, value) {
  if (value === null) return ["", 0];
  return shown === "error" ? [value < 0 ? "low" : "high", Math.min(1, Math.abs(value) * 2)] : ["level", Math.max(0, Math.min(1, value))];
}

function Strips({ name, value }) {
  const [shown, setShown] = useState("reward");
  const [chosen, setChosen] = useState(0);
  const rows = value.rows.map((row) => ({ ...row, error: row.reward.map((came, place) => (came === null || row.expected[place] === null ? null : came - row.expected[place])) }));
  const hasExpected = rows.some((row) => row.expected.some((item) => item !== null));
  const row = rows[Math.min(chosen, rows.length - 1)];
  const series = useMemo(() => {
    if (!row) return [];
    const lines = [{ name: "came", x: value.steps, y: row.reward }];
    return hasExpected ? [...lines, { name: "expected", x: value.steps, y: row.expected, dash: [5, 4] }] : lines;
  }, [value, chosen]);
  if (!rows.length) return html`<p class="quiet">No rollouts are recorded yet.</p>`;
  const scale = Math.max(...rows.flatMap((item) => item.reward.map((came) => Math.abs(came ?? 0))), 1e-9);
  const mean = (values) => {
    const kept = values.filter((item) => item !== null);
    return kept.length ? kept.reduce((a, b) => a + b, 0) / kept.length : null;
  };
  const third = Math.max(1, Math.ceil(value.steps.length / 3));
  return html`<section><h2>${value.by === "region" ? "Regions" : "Tasks"} through the run</h2>
    <p class="quiet">A column is a step, from ${value.steps[0]} to ${value.steps[value.steps.length - 1]}; empty where the ${value.by} was not visited. Choose a row to see its curve.</p>
    ${hasExpected && html`<fieldset class="tools"><legend>Show</legend>${Object.entries(SHOWN).map(([key, label]) => html`<label><input type="radio" name="shown" checked=${shown === key} onChange=${() => setShown(key)} /> ${label}</label>`)}</fieldset>`}
    <div class="wide" tabindex="0" role="region" aria-label="Strips"><table class="strips"><thead><tr><th scope="col">${value.by === "region" ? "Region" : "Task"}</th><th scope="col">Rollouts</th><th scope="col">First third</th><th scope="col">Last third</th><th scope="col">${SHOWN[shown]}</th></tr></thead>
    <tbody>${rows.map((item, place) => html`<tr class=${place === chosen ? "chosen" : ""}>
      <th scope="row"><button type="button" class="plain" aria-pressed=${place === chosen} onClick=${() => setChosen(place)}>${item.name}</button></th><td>${number(item.rollouts)}</td>
      <td>${number(mean(item[shown].slice(0, third)))}</td><td>${number(mean(item[shown].slice(-third)))}</td>
      <td><svg class="strip" viewBox="0 0 ${value.steps.length} 1" preserveAspectRatio="none" aria-hidden="true">${item[shown].map((cell, column) => {
        const [side, strength] = cellClass(shown, cell === null ? null : cell / scale);
        return side && html`<rect class=${side} x=${column} y="0" width="1.02" height="1" style=${{ fillOpacity: 0.12 + 0.88 * strength }} />`;
      })}</svg></td></tr>`)}</tbody></table></div>
    <article class="card wide-card"><h3>${row.name}</h3><${Chart} series=${series} height=${170} label=${row.name} legend=${true} onPick=${(step) => go(["run", name, "rollouts"], { [value.by]: row.filter, first: step, last: step })} />
      <p class="small"><a href=${link(["run", name, "rollouts"], { [value.by]: row.filter })}>its rollouts</a></p></article></section>`;
}

function Trees({ name, steps }) {
  const [at, setAt] = useState(steps.length - 1);
  const step = steps[Math.min(at, steps.length - 1)];
  const state = useAnswer("tree", { run: name, step });
  return html`<section><h2>Tree of regions</h2>
    <div class="tools"><label>Checkpoint of step <span class="at">${step}</span>
      <input type="range" aria-label="Checkpoint" aria-valuetext=${`step ${step}`} min="0" max=${steps.length - 1} value=${at} disabled=${steps.length < 2} onInput=${(event) => setAt(Number(event.target.value))} /></label></div>
    <${Answer} state=${state}>${(tree) => html`
      <p class="quiet">Weights of the experts: ${Object.entries(tree.experts).map(([expert, weight]) => `${expert} ${Math.round(100 * weight)} %`).join(", ")}</p>
      ${tree.regions.length ? html`<${Branch} name=${name} regions=${tree.regions} parent=${-1} />` : html`<p class="quiet">The tree has no regions yet.</p>`}
      ${!!tree.moved.length && html`<details><summary>${tree.moved.length} splits and merges</summary><ul>${tree.moved.map((move) => html`<li>step ${move.step}: ${move.what}</li>`)}</ul></details>`}`}<//></section>`;
}

function Branch({ name, regions, parent }) {
  const children = regions.filter((region) => region.parent === parent);
  if (!children.length) return null;
  return html`<ul class="tree">${children.map((region) => html`<li key=${region.node}>
    <div class="region"><span class="level" aria-hidden="true"><span style=${{ width: `${100 * Math.max(0, Math.min(1, region.success || 0))}%` }}></span></span>
      <b>${region.label && `${region.label}: `}${region.step}</b> success ${number(region.success, 2)} (<${Tone} value=${region.drift} digits=${2} />), ${number(region.prompts)} prompts
      ${region.leaf && !!region.examples.length && html`<div class="small">e.g. ${region.examples.map((example) => html`<a href=${link(["run", name, "prompt"], { prompt: example })}>${example}</a> `)}</div>`}</div>
    <${Branch} name=${name} regions=${regions} parent=${region.node} /></li>`)}</ul>`;
}

function Prompts({ name }) {
  const state = useAnswer("prompts", { run: name }, name);
  const [order, setOrder] = useState("visits");
  const orders = { visits: (a, b) => b.visits - a.visits || a.reward - b.reward, hardest: (a, b) => a.reward - b.reward, easiest: (a, b) => b.reward - a.reward };
  return html`<section><h2>Prompts</h2><${Answer} state=${state}>${(value) => html`
    <div class="tools"><label>Order <select value=${order} onChange=${(event) => setOrder(event.target.value)}><option value="visits">most steps</option><option value="hardest">lowest reward</option><option value="easiest">highest reward</option></select></label></div>
    <div class="wide scroll" tabindex="0" role="region" aria-label="Prompts"><table class="prompts"><thead><tr><th scope="col">Prompt</th><th scope="col">Task</th><th scope="col">Steps</th><th scope="col">Rollouts</th><th scope="col">Mean reward</th></tr></thead>
    <tbody>${[...value.rows].sort(orders[order]).slice(0, 200).map((row) => html`<tr key=${row.prompt_id}><th scope="row"><a href=${link(["run", name, "prompt"], { prompt: row.prompt_id })}>${row.prompt_id}</a></th><td>${row.task}</td><td>${row.visits}</td><td>${row.rollouts}</td><td>${number(row.reward)}</td></tr>`)}</tbody></table></div>`}<//></section>`;
}
