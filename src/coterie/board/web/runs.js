"use strict";
// The list of runs, and runs side by side.

function Runs() {
  const state = useAnswer("runs", {}, "*");
  const [chosen, setChosen] = useState([]);
  const [text, setText] = useState("");
  const [order, setOrder] = useState("newest");
  const toggle = (name) => setChosen(chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]);
  return html`<${Answer} state=${state}>${(list) => {
    const sorters = {
      newest: (a, b) => (b.started || 0) - (a.started || 0),
      name: (a, b) => a.name.localeCompare(b.name),
      result: (a, b) => ((b.after || b.before || {}).value || -9) - ((a.after || a.before || {}).value || -9),
      reward: (a, b) => (b.reward ?? -9) - (a.reward ?? -9),
    };
    const shown = list.runs.filter((run) => run.name.toLowerCase().includes(text.toLowerCase())).sort(sorters[order]);
    return html`
      <h1>Runs</h1>
      <p class="quiet">${list.root}: ${number(list.runs.length)} ${list.runs.length === 1 ? "run" : "runs"}</p>
      <div class="tools">
        <label>Name contains <input id="filter" type="search" value=${text} onInput=${(event) => setText(event.target.value)} /></label>
        <label>Order <select value=${order} onChange=${(event) => setOrder(event.target.value)}>
          <option value="newest">newest first</option><option value="name">name</option>
          <option value="result">best held-out result</option><option value="reward">best training reward</option>
        </select></label>
        <a class="button" role="link" aria-disabled=${chosen.length < 2} href=${chosen.length < 2 ? undefined : link(["compare"], { runs: chosen.join(",") })}>
          Compare ${chosen.length < 2 ? "(choose two)" : `${chosen.length} runs`}</a>
      </div>
      ${!list.runs.length && html`<p>No runs yet. <code>coterie demo</code> makes one; it appears here when it starts.</p>`}
      ${!!shown.length && html`<div class="wide" tabindex="0" role="region" aria-label="Table of runs"><table class="runs">
        <thead><tr><th scope="col"><span class="hidden">Compare</span></th><th scope="col">Run</th><th scope="col">Steps</th>
          <th scope="col">Held-out before → after</th><th scope="col">Training reward</th><th scope="col">Time</th><th scope="col">Settings that differ</th></tr></thead>
        <tbody>${shown.map((run) => html`<${RunRow} key=${run.name} run=${run} chosen=${chosen.includes(run.name)} toggle=${toggle} />`)}</tbody>
      </table></div>`}`;
  }}<//>`;
}

/** The end of a long setting: of paths it tells more than the beginning. */
const shortened = (text) => (text.length > 44 ? `…${text.slice(-43)}` : text);

function RunRow({ run, chosen, toggle }) {
  const settings = Object.entries(run.settings).filter(([key]) => !["name", "runs", "module_path"].includes(key));
  return html`<tr>
    <td><input type="checkbox" aria-label=${`Compare ${run.name}`} checked=${chosen} onChange=${() => toggle(run.name)} /></td>
    <th scope="row"><a href=${link(["run", run.name])}>${run.name}</a> <${State} state=${run.state} />
      <div class="quiet small">${run.model} · ${run.tasks.join(", ")}</div>
      ${run.problem && html`<div class="problem small">${run.problem}</div>`}</th>
    <td data-label="Steps"><${Progress} step=${run.step} steps=${run.steps} /></td>
    <td data-label="Held-out before → after">${run.before || run.after ? html`<span class="small quiet">${run.metric}</span><br />${run.before ? run.before.text : "–"}${run.after && html`<br />→ <b>${run.after.text}</b>`}` : "–"}</td>
    <td data-label="Training reward">${run.spark.length !== 1 && html`<${Spark} points=${run.spark} label=${run.reward === null ? "loss" : "reward"} />`} ${(run.reward ?? run.loss) === null ? "" : number(run.reward ?? run.loss)}${run.reward === null && run.loss !== null && html`<div class="quiet small">loss</div>`}</td>
    <td class="nowrap" data-label="Time">${duration(run.seconds)}</td>
    <td class="small settings">${settings.slice(0, 6).map(([key, value]) => html`<span><code>${key}</code> ${shortened(setting(value))}</span>`)}
      ${settings.length > 6 && html`<span class="quiet">and ${settings.length - 6} more: compare them</span>`}</td>
  </tr>`;
}

const AXES = { step: "step", rollouts: "rollouts", seconds: "seconds" };

/** The steps of a curve as rollouts or seconds spent until then. */
function along(axis, steps, clock) {
  if (axis === "step") return steps;
  const spent = new Map(clock.steps.map((step, place) => [step, clock[axis][place]]));
  return steps.map((step) => (step === 0 ? 0 : (spent.get(step) ?? null)));
}

function Compare({ words }) {
  const state = useAnswer("compare", { runs: words.runs || "" }, "*");
  const [axis, setAxis] = useState("step");
  return html`<h1>Compare</h1><${Answer} state=${state}>${(value) => html`<${Comparison} value=${value} axis=${axis} setAxis=${setAxis} />`}<//>`;
}

function Comparison({ value, axis, setAxis }) {
  const series = useMemo(
    () => ({
      reward: value.runs.map((run) => ({ name: run.name, x: along(axis, run.steps, run.clock), y: run.reward })),
      heldout: value.runs.map((run) => ({
        name: run.name,
        x: along(axis, run.evals.map((result) => result.step), run.clock),
        y: run.evals.map((result) => result.value),
        dots: true,
      })),
    }),
    [value, axis],
  );
  const [first] = value.runs;
  return html`
    <fieldset class="tools"><legend>Horizontal axis</legend>
      ${Object.entries(AXES).map(([key, label]) => html`<label><input type="radio" name="axis" checked=${axis === key} onChange=${() => setAxis(key)} /> ${label}</label>`)}
    </fieldset>
    <section><h2>Training reward</h2><${Chart} series=${series.reward} height=${260} label="Training reward" xLabel=${axis} legend=${true} /></section>
    <section><h2>Held-out result</h2>
      ${value.runs.some((run) => run.evals.length) ? html`<${Chart} series=${series.heldout} height=${220} label="Held-out result" xLabel=${axis} legend=${true} />` : html`<p class="quiet">None of these runs was evaluated.</p>`}</section>
    <section><h2>Paired difference to ${first.name}</h2>
      <p class="quiet">Of the last evaluations, over the prompts that both hold, with 95 % bootstrap intervals.</p>
      <div class="wide" tabindex="0" role="region" aria-label="Paired differences"><table><thead><tr><th scope="col">Run</th><th scope="col">Task</th><th scope="col">Difference</th><th scope="col">p</th></tr></thead><tbody>
      ${value.paired.flatMap((pair) =>
        pair.problem || !pair.tasks.length
          ? [html`<tr><th scope="row">${pair.second}</th><td colspan="3">${pair.problem || "no evaluation of the same prompts"}</td></tr>`]
          : pair.tasks.map((task) => html`<tr><th scope="row">${pair.second}</th><td>${task.task}</td>
              ${task.blocked.length ? html`<td colspan="2">not comparable: ${task.blocked.join(", ")} differ</td>` : html`<td>${task.metric} ${task.text}</td><td>${task.p}</td>`}</tr>`),
      )}</tbody></table></div></section>
    <section><h2>Settings that differ</h2>
      <div class="wide" tabindex="0" role="region" aria-label="Settings that differ"><table><thead><tr><th scope="col">Setting</th>${value.runs.map((run) => html`<th scope="col"><a href=${link(["run", run.name])}>${run.name}</a></th>`)}</tr></thead>
      <tbody>${value.settings.map((row) => html`<tr><th scope="row"><code>${row.key}</code></th>${row.values.map((item) => html`<td>${setting(item)}</td>`)}</tr>`)}</tbody></table></div></section>`;
}
