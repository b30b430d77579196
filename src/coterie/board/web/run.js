"use strict";
// One run: progress, findings, curves with their meaning, events, machine, where the time goes.

const TABS = [
  ["overview", "Overview", []],
  ["rollouts", "Rollouts", ["rollouts"]],
  ["groups", "Groups", ["groups"]],
  ["try", "Try it", ["try"]],
].slice(0, records ? 3 : 4); // an exported page has no model to ask

function RunHead({ name, tab }) {
  return html`<p class="crumbs"><a href=${link([])}>Runs</a> / <a href=${link(["run", name])}>${name}</a></p>
    <nav class="tabs" aria-label="Pages of the run">
      ${TABS.map(([key, label, rest], place) => html`<a href=${link(["run", name, ...rest])} aria-current=${key === tab ? "page" : undefined}>${label} <kbd>${place + 1}</kbd></a>`)}
    </nav>`;
}

function Run({ name }) {
  const state = useAnswer("run", { run: name }, name);
  return html`<${RunHead} name=${name} tab="overview" /><h1>${name}</h1>
    <${Answer} state=${state}>${(run) => html`<${RunFacts} run=${run} />`}<//>
    <${Damage} name=${name} />
    <${Findings} name=${name} />
    <${Metrics} name=${name} evals=${state.value ? state.value.evals : []} />
    <${Answer} state=${state}>${(run) => html`<${RunRest} run=${run} />`}<//>`;
}

/** Metrics that do not match their hash; the board checks all of them, a part with each question. */
function Damage({ name }) {
  const [damaged, setDamaged] = useState([]);
  useEffect(() => {
    let gone = false;
    const check = async () => {
      for (let cursor = ""; cursor !== null && !gone; ) {
        const part = await get("damage", { run: name, from: cursor });
        if (!gone && part.damaged.length) setDamaged((before) => [...before, ...part.damaged]);
        cursor = part.next;
      }
    };
    check().catch(() => {}); // what cannot be read at all is told above
    return () => (gone = true);
  }, [name]);
  return !!damaged.length && html`<p class="problem" role="alert">metrics.sqlite is damaged: ${damaged.slice(0, 4).join(", ")}${damaged.length > 4 ? ` and ${damaged.length - 4} more` : ""} do not match their hash</p>`;
}

function RunFacts({ run }) {
  const last = run.evals[run.evals.length - 1];
  return html`
    ${run.problem && html`<p class="problem" role="alert">${run.problem}</p>`}
    <${Facts} rows=${[
      ["state", html`<${State} state=${run.state} />${run.pid > 0 ? ` process ${run.pid}` : ""}`],
      ["steps", html`<${Progress} step=${run.step} steps=${run.steps} />`],
      ["model", run.model],
      ["tasks", run.tasks.join(", ")],
      ["training reward", number(run.last["reward/mean"])],
      ["held-out", last ? `${last.metric} ${last.text} after step ${last.step}${last.task === "all" ? "" : ` (${last.task})`}` : ""],
      ["checkpoints", run.checkpoints.length ? `steps ${run.checkpoints.join(", ")}` : "none"],
      ["size", `${number(run.size_mb)} MB`],
    ]} />
    ${!!run.paired.length && html`<section><h2>After minus before</h2><p class="quiet">Held-out, paired by prompt, 95 % bootstrap intervals over prompts.</p>
      <div class="wide" tabindex="0" role="region" aria-label="Differences by task"><table><thead><tr><th scope="col">Task</th><th scope="col">Difference</th><th scope="col">p</th></tr></thead><tbody>
      ${run.paired.map((row) => html`<tr><th scope="row">${row.task}</th><td>${row.text}</td><td class="nowrap">${row.p}</td></tr>`)}</tbody></table></div></section>`}`;
}

function Findings({ name }) {
  const state = useAnswer("doctor", { run: name }, name);
  return html`<section id="findings"><h2>What the doctor finds</h2><${Answer} state=${state}>${(value) => html`
    <p>${value.verdict}</p>${value.ended && html`<p class="problem">${value.ended}</p>`}
    <ul class="findings">${value.findings.map((finding) => html`<li class="finding ${finding.severity}"><h3><span class="state ${finding.severity}">${finding.severity}</span> <${Words} text=${finding.title} /></h3>
      <ul>${finding.evidence.map((item) => html`<li>${item.text}
        ${item.metric && html` · <a href="#metric-${item.metric}" onClick=${(event) => showMetric(event, item.metric)}>curve</a>`}${" · "}<a href=${link(["run", name, "rollouts"], { first: item.steps[0], last: item.steps[1] })}>rollouts of ${item.steps[0] === item.steps[1] ? `step ${item.steps[0]}` : `steps ${item.steps[0]} to ${item.steps[1]}`}</a></li>`)}</ul>
      <p><${Words} text=${finding.meaning} /></p><p><b>Do:</b> <${Words} text=${finding.action} /></p><p class="quiet small">rule <code>${finding.rule}</code></p></li>`)}</ul>
    <details hidden=${!value.passed.length && !value.skipped.length}><summary>${value.passed.length} checks passed, ${value.skipped.length} skipped</summary>
      <p><b>Passed:</b> ${value.passed.join(", ") || "none"}</p>
      <ul>${value.skipped.map((rule) => html`<li><code>${rule.rule}</code>: ${rule.asks} ${rule.reason}</li>`)}</ul></details>`}<//></section>`;
}

/** Open the section of a metric and scroll to its curve; the address stays that of the page. */
function showMetric(event, metric) {
  event.preventDefault();
  const card = document.getElementById(`metric-${metric}`) || document.getElementById("held-out");
  if (!card) return;
  const section = card.closest("details");
  if (section) section.open = true;
  card.scrollIntoView({ block: "center" });
  card.focus();
}

const FIRST = ["reward/mean", "entropy", "grad_norm", "length/mean"];
const FIRST_OF_TUNING = ["loss", "heldout/loss", "entropy/data", "grad_norm"];

function Metrics({ name, evals }) {
  const state = useAnswer("curves", { run: name }, name);
  const doctor = useAnswer("doctor", { run: name }, name);
  const marks = {};
  for (const finding of doctor.value ? doctor.value.findings : [])
    for (const item of finding.evidence) (marks[item.metric] = marks[item.metric] || []).push(item.steps);
  return html`<section><h2>Curves</h2><p class="quiet small">Drag to zoom, double-click a point to see the rollouts of its step. Shaded steps are those that a finding points to.</p>
    <${Answer} state=${state}>${(value) => {
      if (!value.metrics.length) return html`<p class="quiet">No step is recorded yet.</p>`;
      const sections = new Map();
      for (const metric of value.metrics) sections.set(metric.section, [...(sections.get(metric.section) || []), metric]);
      const main = (value.metrics.some((metric) => metric.name === "reward/mean") ? FIRST : FIRST_OF_TUNING).flatMap((key) => value.metrics.filter((metric) => metric.name === key));
      return html`
        <${HeldOut} evals=${evals} />
        <div class="cards">${main.map((metric) => html`<${Metric} key=${metric.name} run=${name} metric=${metric} marks=${marks[metric.name]} prefix="main" />`)}</div>
        <${RewardParts} name=${name} metrics=${value.metrics} />
        <${TimeShares} metrics=${value.metrics} clock=${value.clock} />
        ${[...sections].map(([section, metrics]) => html`<details key=${section} class="section"><summary>${section} <span class="quiet">${metrics.length} ${metrics.length === 1 ? "curve" : "curves"}${metrics.some((metric) => marks[metric.name]) ? ", with a finding" : ""}</span></summary>
          <div class="cards">${metrics.map((metric) => html`<${Metric} key=${metric.name} run=${name} metric=${metric} marks=${marks[metric.name]} prefix="metric" />`)}</div></details>`)}`;
    }}<//></section>`;
}

function Metric({ run, metric, marks, prefix }) {
  const series = useMemo(() => [{ name: metric.name, x: metric.steps, y: metric.values }], [metric]);
  return html`<article class="card ${marks ? "marked" : ""}" id="${prefix}-${metric.name}" tabindex="-1">
    <h3><code>${metric.name}</code> <span class="value">${number(metric.values[metric.values.length - 1])}</span></h3>
    <${Chart} series=${series} label=${metric.name} marks=${marks || []} onPick=${(step) => go(["run", run, "rollouts"], { first: step, last: step })} />
    ${metric.means && html`<p class="small"><${Words} text=${metric.means} /></p>`}
    ${metric.worry && html`<p class="small"><b>Worry when</b> <${Words} text=${metric.worry} />${metric.do && html`<br /><b>Do:</b> <${Words} text=${metric.do} />`}</p>`}
  </article>`;
}

/** Held-out results by task, each with its interval. */
function HeldOut({ evals }) {
  const tasks = [...new Set(evals.map((result) => result.task))];
  const series = useMemo(
    () => tasks.map((task) => {
      const results = evals.filter((result) => result.task === task);
      return { name: task, x: results.map((result) => result.step), y: results.map((result) => result.value), dots: true };
    }),
    [evals],
  );
  if (!tasks.length) return null;
  const steps = [...new Set(evals.map((result) => result.step))];
  return html`<article class="card wide-card" id="held-out" tabindex="-1"><h3>Held-out results</h3>
    ${steps.length > 1 && html`<${Chart} series=${series} height=${180} label="Held-out results" legend=${tasks.length > 1} />`}
    <div class="wide" tabindex="0" role="region" aria-label="Held-out results"><table class="small"><thead><tr><th scope="col">Task</th>${steps.map((step) => html`<th scope="col">step ${step}</th>`)}</tr></thead>
      <tbody>${tasks.map((task) => html`<tr><th scope="row">${task}</th>${steps.map((step) => {
        const result = evals.find((item) => item.task === task && item.step === step);
        return html`<td>${result ? result.text : "–"}</td>`;
      })}</tr>`)}</tbody></table></div></article>`;
}

/** The parts of the reward as curves beside each other, and how they go together. */
function RewardParts({ name, metrics }) {
  const parts = metrics.filter((metric) => metric.name.startsWith("reward/part/"));
  const series = useMemo(() => parts.slice(0, PALETTE.length).map((metric) => ({ name: metric.name.slice(12), x: metric.steps, y: metric.values })), [metrics]);
  const state = useAnswer(series.length > 1 && "parts", { run: name }, name);
  if (series.length < 2) return null;
  const cell = (side) => html`<td>${side.correlation === null ? html`<span class="quiet">–</span>` : html`<${Tone} value=${side.correlation} digits=${2} />`}</td>`;
  return html`<article class="card wide-card"><h3>Parts of the reward</h3>
    <${Chart} series=${series} height=${180} label="Parts of the reward" legend=${true} onPick=${(step) => go(["run", name, "rollouts"], { first: step, last: step })} />
    <p class="small">Each part unweighted. Where one rises while another falls, the sum may hide it: the doctor says so.${parts.length > series.length && ` Drawn are ${series.length} of ${parts.length} parts.`}</p>
    <${Answer} state=${state}>${(value) => {
      const once = String(value.steps.early) === String(value.steps.late); // of a run that has but one step
      return html`<div class="wide" tabindex="0" role="region" aria-label="Correlations of parts"><table class="small"><thead><tr><th scope="col">Correlation over rollouts</th>${once ? html`<th scope="col">All steps</th>` : html`<th scope="col">First third</th><th scope="col">Last third</th>`}</tr></thead>
      <tbody>${value.pairs.slice(0, 28).map((pair) => html`<tr><th scope="row">${pair.first} and ${pair.second}</th>${cell(pair.early)}${!once && cell(pair.late)}</tr>`)}</tbody></table></div>`;
    }}<//></article>`;
}

/** Seconds of all steps by what they were spent on. */
function TimeShares({ metrics, clock }) {
  const total = (name) => {
    const metric = metrics.find((item) => item.name === `time/${name}`);
    return metric ? metric.values.reduce((sum, value) => sum + value, 0) : 0;
  };
  const step = total("step");
  if (!step) return null;
  const parts = [
    ["generate", total("generate")],
    ["reward", total("reward")],
    ["rest of collecting", total("collect") - total("generate") - total("reward")],
    ["update", total("update")],
    ["everything else", step - total("collect") - total("update")],
  ].filter(([, seconds]) => seconds > 0.002 * step);
  if (parts.length < 2) return null;
  const speeds = metrics.filter((metric) => metric.name.startsWith("speed/"));
  const all = clock.seconds[clock.seconds.length - 1];
  return html`<article class="card wide-card"><h3>Where the time goes</h3>
    <div class="shares" role="img" aria-label=${parts.map(([name, seconds]) => `${name} ${Math.round((100 * seconds) / step)} %`).join(", ")}>
      ${parts.map(([name, seconds], place) => html`<span class="share fill-${place + 1}" style=${{ flexGrow: seconds }} title=${name}></span>`)}</div>
    <ul class="keys">${parts.map(([name, seconds], place) => html`<li><span class="key fill-${place + 1}"></span>${name} ${Math.round((100 * seconds) / step)} % (${duration((seconds / step) * all)})</li>`)}</ul>
    <p class="small quiet">${duration(all)} in ${number(clock.steps.length)} ${clock.steps.length === 1 ? "step" : "steps"}, ${number(clock.rollouts[clock.rollouts.length - 1])} rollouts${speeds
      .map((metric) => `; ${metric.name.slice(6)} ${number(metric.values[metric.values.length - 1])} tokens a second at last`)
      .join("")}</p></article>`;
}

function RunRest({ run }) {
  const [kind, setKind] = useState("");
  const kinds = [...new Set(run.events.map((event) => event.kind))];
  const events = run.events.filter((event) => !kind || event.kind === kind).slice(-100).reverse();
  return html`<section><h2>Events</h2>
    ${!!kinds.length && html`<div class="tools"><label>Kind <select value=${kind} onChange=${(event) => setKind(event.target.value)}><option value="">all</option>${kinds.map((item) => html`<option value=${item}>${item}</option>`)}</select></label></div>`}
    ${!events.length && html`<p class="quiet">None recorded.</p>`}
    <div class="wide scroll" hidden=${!events.length} tabindex="0" role="region" aria-label="Events"><table class="events"><thead><tr><th scope="col">Time</th><th scope="col">Step</th><th scope="col">Kind</th><th scope="col">Message</th></tr></thead>
    <tbody>${events.map((event) => html`<tr><td class="small">${when(event.time)}</td><td>${event.step ?? ""}</td><td><span class="state ${event.kind}">${event.kind}</span></td><td>${event.message}</td></tr>`)}</tbody></table></div></section>
    <section><h2>Machine and versions</h2><${Facts} rows=${Object.entries(run.machine)} />${!Object.keys(run.machine).length && html`<p class="quiet">Not recorded.</p>`}</section>
    <section><details><summary><h2>Settings</h2></summary><div class="wide" tabindex="0" role="region" aria-label="Settings"><table><tbody>${Object.entries(run.settings).map(([key, value]) => html`<tr><th scope="row"><code>${key}</code></th><td>${setting(value)}</td></tr>`)}</tbody></table></div></details></section>
    <p class="quiet small">${run.path}</p>`;
}
