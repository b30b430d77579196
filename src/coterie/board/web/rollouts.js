"use strict";
// Stored rollouts: the list with filters, a group side by side, one rollout with its tokens, a prompt through the run.

const FIELDS = [
  ["task", "Task", "search"], ["region", "Region contains", "search"], ["prompt", "Prompt id", "search"],
  ["min_reward", "Reward from", "number"], ["max_reward", "to", "number"],
  ["min_length", "Tokens from", "number"], ["max_length", "to", "number"],
  ["first", "Step from", "number"], ["last", "to", "number"],
];
const STOPS = ["stop", "length", "deadline", "episode"];
const OUTCOMES = ["ok", "truncated", "env_error", "reward_error", "engine_error"];
const ORDER = { "": "as sampled", "-reward": "highest reward", reward: "lowest reward", "-advantage": "highest advantage", advantage: "lowest advantage", "-completion_length": "longest", completion_length: "shortest" };

/** Of the rollouts in an exported page those that a link asks for. */
function embeddedPage(page, words) {
  const fits = (row) =>
    (!words.first || row.step >= Number(words.first)) && (!words.last || row.step <= Number(words.last)) &&
    (!words.prompt || row.prompt_id === words.prompt) && (!words.task || row.task === words.task) &&
    (!words.region || (row.region || "").includes(words.region));
  const rows = page.rows.filter(fits);
  return { ...page, rows: words.oldest ? rows.sort((a, b) => a.step - b.step) : rows };
}

/** Pages of rollouts one after the other; more() asks for the next. */
function usePages(name, words) {
  const key = JSON.stringify([name, words]);
  const [state, setState] = useState({ key: null });
  const current = useRef(null);
  current.current = key;
  const load = async (cursor, rows) => {
    try {
      const page = records ? embeddedPage(await get("rollouts", { run: name }), words) : await get("rollouts", { ...words, run: name, cursor });
      if (current.current === key) setState({ key, page, rows: [...rows, ...page.rows] });
    } catch (error) {
      if (current.current === key) setState({ key, error: error.message, rows, page: {} });
    }
  };
  useEffect(() => {
    const timer = setTimeout(() => load("", []), 150);
    return () => clearTimeout(timer);
  }, [key]);
  return state.key === key ? { ...state, more: () => load(state.page.next, state.rows) } : { loading: true };
}

function Rollouts({ name, words }) {
  const [filters, setFilters] = useState(words);
  useEffect(() => setFilters(words), [JSON.stringify(words)]);
  const timer = useRef(0);
  const set = (key, value) => {
    const next = { ...filters, [key]: value };
    setFilters(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => history.replaceState(null, "", link(["run", name, "rollouts"], next)), 300);
  };
  const pages = usePages(name, filters);
  return html`<${RunHead} name=${name} tab="rollouts" /><h1>Rollouts</h1>
    ${records && html`<p class="quiet">An exported page holds the rollouts of some steps, without filters; links here show those of them that it holds.</p>`}
    ${!records && html`<form class="tools filters" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
      ${FIELDS.map(([key, label, type], place) => html`<label class=${type}>${label} <input id=${place ? undefined : "filter"} type=${type} step="any" value=${filters[key] || ""} onInput=${(event) => set(key, event.target.value)} /></label>`)}
      <label>Stopped by <select value=${filters.stop || ""} onChange=${(event) => set("stop", event.target.value)}><option value="">anything</option>${STOPS.map((item) => html`<option value=${item}>${item}</option>`)}</select></label>
      <label>Outcome <select value=${filters.outcome || ""} onChange=${(event) => set("outcome", event.target.value)}><option value="">any</option>${OUTCOMES.map((item) => html`<option value=${item}>${item}</option>`)}</select></label>
      <label>Order in a step <select value=${filters.order || ""} onChange=${(event) => set("order", event.target.value)}>${Object.entries(ORDER).map(([key, label]) => html`<option value=${key}>${label}</option>`)}</select></label>
      <label><input type="checkbox" checked=${filters.oldest === "1"} onChange=${(event) => set("oldest", event.target.checked ? "1" : "")} /> first steps first</label>
      <button type="button" onClick=${() => { setFilters({}); history.replaceState(null, "", link(["run", name, "rollouts"])); }}>Clear</button>
    </form>`}
    <${RolloutList} name=${name} pages=${pages} />`;
}

function RolloutList({ name, pages }) {
  if (pages.loading) return html`<p class="quiet" role="status">Reading …</p>`;
  const { rows, page } = pages;
  return html`${pages.error && html`<p class="problem" role="alert">${pages.error}</p>`}
    ${(page.problems || []).map((problem) => html`<p class="problem">${problem}</p>`)}
    <p class="quiet small" role="status">${number(rows.length)} rollouts${page.steps && page.steps.length ? `; steps ${page.steps[0]} to ${page.steps[1]} are selected` : ""}${page.next ? `, read on from step ${page.next.split(":")[0]}` : ""}</p>
    ${!!rows.length && html`<div class="wide" tabindex="0" role="region" aria-label="Table of rollouts"><table class="rollouts"><thead><tr><th scope="col">Rollout</th><th scope="col">Step</th><th scope="col">Group</th><th scope="col">Reward</th><th scope="col">Advantage</th><th scope="col">Tokens</th><th scope="col">Stop</th><th scope="col">Completion</th></tr></thead>
    <tbody>${rows.map((row) => html`<${RolloutRow} key=${`${row.step} ${row.rollout_id}`} name=${name} row=${row} />`)}</tbody></table></div>`}
    ${page.next && html`<p><button type="button" class="more" onClick=${pages.more}>${rows.length ? "Show more" : "Search on in earlier steps"}</button></p>`}`;
}

const Tone = ({ value, digits }) => html`<span class=${value > 0 ? "up" : value < 0 ? "down" : ""}>${signed(value, digits)}</span>`;

function RolloutRow({ name, row }) {
  return html`<tr><td data-label="rollout"><a href=${link(["run", name, "rollout"], { step: row.step, id: row.rollout_id })}>#${row.sample}</a></td>
    <td data-label="step">${row.step}</td>
    <td data-label="group"><a href=${link(["run", name, "group"], { step: row.step, prompt: row.prompt_id })}>${row.prompt_id}</a><div class="quiet small">${row.task}</div></td>
    <td data-label="reward">${number(row.reward)}</td><td data-label="advantage"><${Tone} value=${row.advantage} /></td><td data-label="tokens">${number(row.completion_length)}</td>
    <td class="small" data-label="stop">${row.stop_reason}${row.outcome !== "ok" && html` <span class="state warning">${row.outcome}</span>`}</td>
    <td class="said"><div class="snippet">${row.text}</div></td></tr>`;
}

// ---- a group

function Message({ message, more }) {
  const left = message.characters - message.content.length;
  return html`<div class="message ${message.role}"><div class="role">${message.role}${message.name && ` ${message.name}`}${message.error && html` <span class="state error">${message.error}</span>`}</div><div class="content">${message.content}</div>
    ${(message.calls || []).map((call) => html`<div class="call small">calls <b>${call.name}</b> <span class="content">${call.arguments}</span></div>`)}
    ${message.characters > 0 && left > 0 && html`<p class="quiet small">${number(message.characters)} characters; ${more ? html`<button type="button" onClick=${more}>show all</button>` : "its own page shows all"}</p>`}</div>`;
}

function Group({ name, words }) {
  const state = useAnswer("group", { run: name, step: words.step, prompt: words.prompt });
  return html`<${RunHead} name=${name} tab="rollouts" /><h1>Group of step ${words.step}</h1>
    <${Answer} state=${state}>${(group) => html`
      <p><code>${group.prompt_id}</code> · <a href=${link(["run", name, "prompt"], { prompt: group.prompt_id })}>the same prompt through the run</a> · <a href=${link(["run", name, "rollouts"], { first: words.step, last: words.step })}>all rollouts of the step</a>${!records && html` · <a href=${link(["run", name, "try"], { prompt: group.prompt_id })}>try it</a>`}</p>
      <section aria-label="Prompt">${group.messages.map((message) => html`<${Message} message=${message} />`)}
        ${group.answer && html`<p class="kept"><b>Answer in the data:</b> ${group.answer}</p>`}</section>
      <h2>${group.count} attempts${group.count > group.members.length ? `, ${group.members.length} are shown` : ""}</h2>
      <${GroupTable} name=${name} group=${group} />
      <div class="siblings">${group.members.map((member) => html`<article class="card"><h3><a href=${link(["run", name, "rollout"], { step: group.step, id: member.rollout_id })}>#${member.sample}</a>
        <span class="value">reward ${number(member.reward)}, advantage <${Tone} value=${member.advantage} /></span></h3>
        ${member.error && html`<p class="problem small">${member.error}</p>`}
        ${member.turns > 1 && html`<p class="quiet small">the last of ${member.turns} turns</p>`}
        <div class="content completion" tabindex="0" role="region" aria-label=${`Completion ${member.sample}`}>${member.text || html`<span class="quiet">(empty)</span>`}</div>
        ${member.characters > member.text.length && html`<p class="quiet small">cut: ${number(member.characters)} characters; its own page shows all</p>`}</article>`)}</div>`}<//>`;
}

/** Rewards by part, baseline by scale and advantage of the siblings, one column each. */
function GroupTable({ name, group }) {
  const parts = [...new Set(group.members.flatMap((member) => Object.keys(member.reward_parts)))];
  const scales = [...new Set(group.members.flatMap((member) => Object.keys(member.contributions)))];
  const row = (label, value, tone) => html`<tr><th scope="row">${label}</th>${group.members.map((member) => html`<td>${tone ? html`<${Tone} value=${value(member)} />` : value(member)}</td>`)}</tr>`;
  return html`<div class="wide" tabindex="0" role="region" aria-label="Siblings"><table class="members"><thead><tr><th scope="col">Attempt</th>${group.members.map((member) => html`<th scope="col"><a href=${link(["run", name, "rollout"], { step: group.step, id: member.rollout_id })}>#${member.sample}</a></th>`)}</tr></thead><tbody>
    ${row("reward", (member) => number(member.reward))}
    ${parts.map((part) => row(html`<span class="inset">part ${part}</span>`, (member) => number(member.reward_parts[part])))}
    ${group.members.some((member) => member.expected !== null) && row("expected before", (member) => number(member.expected))}
    ${scales.map((scale) => row(html`<span class="inset">baseline from ${scale}</span>`, (member) => signed(member.contributions[scale])))}
    ${row("advantage", (member) => member.advantage, true)}
    ${row("tokens", (member) => number(member.completion_length))}
    ${row("stopped by", (member) => member.stop_reason)}
    ${row("outcome", (member) => member.outcome)}
    </tbody></table></div>`;
}

// ---- one rollout

const numberAt = (tokens, name, place) => (tokens[name] && typeof tokens[name][place] === "number" ? tokens[name][place] : null);

/** Colours of tokens: their value, its unit, and the value of the full colour, which is else the largest of those shown (at least `least`). */
const MODES = {
  logprob: { label: "log-prob", help: "the stronger the colour, the less likely the sampler thought the token", value: (tokens, place) => numberAt(tokens, "sampler_logprobs", place) ?? numberAt(tokens, "logprobs", place), full: -6, side: "low" },
  entropy: { label: "entropy", help: "of the distribution that the token was sampled from: the stronger the colour, the more open the choice was there, whichever token came", value: (tokens, place) => numberAt(tokens, "sampler_entropies", place), full: 3, side: "high", unit: "nats" },
  mismatch: { label: "sampler against learner", help: "log-prob of the learner less that of the sampler: blue where the learner finds the token likelier, orange where less likely", value: difference, least: 0.01 },
  advantage: { label: "advantage", help: "blue is reinforced, orange is discouraged", value: (tokens, place) => numberAt(tokens, "token_advantages", place) },
  share: { label: "share in the gradient", help: "the stronger the colour, the further the update moves the token's own logit: |advantage| · (1 − p), before clipping and the weights of the aggregation", value: pull },
  value: { label: "critic's value", help: "the critic's estimate at the token", value: (tokens, place) => numberAt(tokens, "values", place) },
};

/** Derivative of the surrogate, A·log p, with respect to the token's own logit: A·(1 − p). */
function pull(tokens, place) {
  const [advantage, logprob] = [numberAt(tokens, "token_advantages", place), numberAt(tokens, tokens.logprobs ? "logprobs" : "sampler_logprobs", place)];
  return advantage === null || logprob === null ? null : advantage * (1 - Math.exp(logprob));
}

function difference(tokens, place) {
  const [sampler, learner] = [numberAt(tokens, "sampler_logprobs", place), numberAt(tokens, "logprobs", place)];
  return sampler === null || learner === null ? null : learner - sampler;
}

/** Values of a colour at all tokens, null where there is none, with the value of the full colour. */
function shades(mode, tokens) {
  const values = tokens.ids.map((_, place) => MODES[mode].value(tokens, place));
  return { values, full: MODES[mode].full ?? values.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), MODES[mode].least ?? 1e-9) };
}

const offered = (mode, tokens) => tokens.ids.some((_, place) => MODES[mode].value(tokens, place) !== null);

function Scale({ mode, full }) {
  const { side, unit } = MODES[mode];
  return html`<p class="scale quiet small">${side ? "0" : number(-full)} <span class=${`ramp ${side || "both"}`} aria-hidden="true"></span> ${side ? `${number(full)} ${unit || ""} or ${full < 0 ? "less" : "more"}` : number(full)}</p>`;
}

function Tokens({ name, words, rollout }) {
  const [tokens, setTokens] = useState(rollout.tokens);
  const [mode, setMode] = useState(() => Object.keys(MODES).find((key) => offered(key, rollout.tokens)));
  const [place, setPlace] = useState(0);
  const [problem, setProblem] = useState("");
  useEffect(() => setTokens(rollout.tokens), [rollout]);
  const { values, full } = mode ? shades(mode, tokens) : { values: [], full: 1 };
  const move = (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: tokens.ids.length - 1 - place };
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    setPlace(Math.max(0, Math.min(tokens.ids.length - 1, place + steps[event.key])));
  };
  const turnTo = async (first) => {
    try {
      setTokens((await get("rollout", { run: name, step: words.step, id: words.id, from: first })).tokens);
      setPlace(0);
    } catch (error) {
      setProblem(error.message);
    }
  };
  if (!tokens.count) return html`<section><h2>Tokens</h2><p class="quiet">None were sampled.</p></section>`;
  const text = (at) => tokens.texts[at] ?? `[${tokens.ids[at]}] `;
  const fact = (key) => numberAt(tokens, key, place);
  const [log, entropy] = [fact("sampler_logprobs"), fact("sampler_entropies")];
  return html`<section><h2>Tokens</h2>
    <fieldset class="tools"><legend>Colour</legend>${Object.entries(MODES).filter(([key]) => key === mode || offered(key, tokens)).map(([key, item]) => html`<label><input type="radio" name="mode" checked=${mode === key} onChange=${() => setMode(key)} /> ${item.label}</label>`)}</fieldset>
    ${mode && html`<p class="quiet small">${MODES[mode].help}; tokens that the model did not sample are grey. ← and → step through the tokens.</p><${Scale} mode=${mode} full=${full} />`}
    ${problem && html`<p class="problem" role="alert">${problem}</p>`}
    <div class="tokens" tabindex="0" role="group" aria-label="Tokens; arrow keys step through them" onKeyDown=${move} onClick=${(event) => { const picked = event.target.dataset.at; if (picked !== undefined) setPlace(Number(picked)); }}>
      ${tokens.ids.map((id, index) => {
        const value = tokens.mask[index] ? values[index] ?? null : null;
        const side = value === null ? "" : MODES[mode].side || (value < 0 ? "low" : "high");
        return html`<span data-at=${index} title=${value === null ? undefined : `${MODES[mode].label} ${number(value, 4)} ${MODES[mode].unit || ""}`} class="token ${tokens.mask[index] ? "" : "masked"} ${side} ${index === place ? "here" : ""}" style=${side ? { "--strength": `${Math.round(Math.max(0, Math.min(1, MODES[mode].side ? value / full : Math.abs(value) / full)) * 100)}%` } : undefined}>${text(index)}</span>`;
      })}</div>
    <div aria-live="polite"><${Facts} rows=${[
      ["token", html`<code>${JSON.stringify(text(place))}</code> (id ${tokens.ids[place]}, ${tokens.first + place + 1} of ${tokens.count})`],
      ["log-prob when sampled", log === null ? "" : `${number(log)} (p = ${number(Math.exp(log))})`],
      ["entropy when sampled", entropy === null ? "" : `${number(entropy, 4)} nats`],
      ["log-prob by the learner", fact("logprobs") === null ? "" : number(fact("logprobs"), 4)],
      ["ratio learner / sampler", difference(tokens, place) === null ? "" : number(Math.exp(difference(tokens, place)), 5)],
      ["advantage", tokens.mask[place] ? signed(fact("token_advantages")) : "not trained on"],
      ["return", fact("returns") === null ? "" : number(fact("returns"))],
      ["critic's value", fact("values") === null ? "" : number(fact("values"))],
    ]} /></div>
    ${tokens.count > tokens.ids.length && html`<p>Tokens ${number(tokens.first + 1)} to ${number(tokens.first + tokens.ids.length)} of ${number(tokens.count)}
      ${tokens.first > 0 && html` <button type="button" onClick=${() => turnTo(Math.max(0, tokens.first - tokens.ids.length))}>earlier</button>`}
      ${tokens.first + tokens.ids.length < tokens.count && html` <button type="button" onClick=${() => turnTo(tokens.first + tokens.ids.length)}>later</button>`}</p>`}
  </section>`;
}

function Rollout({ name, words }) {
  const [whole, setWhole] = useState(false);
  useEffect(() => setWhole(false), [words.id, words.step]);
  const state = useAnswer("rollout", { run: name, step: words.step, id: words.id, whole: whole ? "1" : "" });
  const group = useAnswer(state.value && "group", { run: name, step: words.step, prompt: state.value && state.value.prompt_id });
  return html`<${RunHead} name=${name} tab="rollouts" /><h1>Rollout</h1>
    <${Answer} state=${state}>${(rollout) => {
      const siblings = group.value && group.value.prompt_id === rollout.prompt_id ? group.value.members.map((member) => member.rollout_id) : [];
      const at = siblings.indexOf(rollout.rollout_id);
      const near = (by) => siblings[at + by] && link(["run", name, "rollout"], { step: words.step, id: siblings[at + by] });
      return html`
      <p><a href=${link(["run", name, "group"], { step: rollout.step, prompt: rollout.prompt_id })}>its group</a> · <a href=${link(["run", name, "prompt"], { prompt: rollout.prompt_id })}>the same prompt through the run</a>
        ${at > 0 && html` · <a data-key="p" href=${near(-1)}>previous attempt <kbd>p</kbd></a>`}${at >= 0 && at < siblings.length - 1 && html` · <a data-key="n" href=${near(1)}>next attempt <kbd>n</kbd></a>`}</p>
      <${Facts} rows=${[
        ["rollout", html`<code>${rollout.rollout_id}</code>`], ["step", rollout.step], ["task", rollout.task],
        ["reward", number(rollout.reward)],
        ...Object.entries(rollout.reward_parts).map(([part, value]) => [`part ${part}`, number(value)]),
        ["expected before", rollout.expected === null ? "" : `${number(rollout.expected)} ± ${number(rollout.expected_std)}`],
        ...Object.entries(rollout.contributions).map(([scale, value]) => [`baseline from ${scale}`, signed(value)]),
        ["advantage", rollout.advantage === null ? "none: it was in no group that teaches" : html`<${Tone} value=${rollout.advantage} digits=${4} />`],
        ["region", rollout.region], ["outcome", rollout.outcome], ["stopped by", rollout.stop_reason],
        ["tokens", `${number(rollout.prompt_length)} + ${number(rollout.completion_length)}`],
        ["answer in the data", rollout.answer && html`<span class="kept">${rollout.answer}</span>`], ["policy version", rollout.version],
        ["attempts before", rollout.past_tries === null ? "" : `${number(rollout.past_tries)}${rollout.past_reward === null ? "" : `, mean reward ${number(rollout.past_reward)}`}`],
      ]} />
      ${rollout.error && html`<p class="problem">${rollout.error}</p>`}
      <section><h2>Conversation</h2>${rollout.messages.map((message) => html`<${Message} message=${message} more=${() => setWhole(true)} />`)}</section>
      ${!!rollout.step_rewards.length && html`<section><h2>Step rewards</h2><div class="wide" tabindex="0" role="region" aria-label="Step rewards"><table><thead><tr><th scope="col">Function</th><th scope="col">Ends at token</th><th scope="col">Value</th></tr></thead><tbody>${rollout.step_rewards.map((item) => html`<tr><th scope="row">${item.label}</th><td>${item.end + 1}</td><td>${number(item.value)}</td></tr>`)}</tbody></table></div></section>`}
      <${Tokens} name=${name} words=${words} rollout=${rollout} />`;
    }}<//>`;
}

// ---- a prompt through the run

function PromptPage({ name, words }) {
  const pages = usePages(name, { prompt: words.prompt, oldest: "1" });
  const rows = pages.rows || [];
  const series = useMemo(() => {
    const steps = [...new Set(rows.map((row) => row.step))];
    const mean = (step, key) => {
      const values = rows.filter((row) => row.step === step && typeof row[key] === "number").map((row) => row[key]);
      return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
    };
    const lines = [{ name: "mean reward", x: steps, y: steps.map((step) => mean(step, "reward")) }];
    const expected = steps.map((step) => mean(step, "expected"));
    return expected.some((value) => value !== null) ? [...lines, { name: "expected", x: steps, y: expected, dash: [5, 4] }] : lines;
  }, [pages.rows]);
  return html`<${RunHead} name=${name} tab="rollouts" /><h1>One prompt through the run</h1><p><code>${words.prompt}</code></p>
    ${series[0].x.length > 1 && html`<article class="card wide-card"><h2>Reward of its attempts</h2><${Chart} series=${series} height=${160} label="Reward of the prompt" legend=${true} onPick=${(step) => go(["run", name, "group"], { step, prompt: words.prompt })} /></article>`}
    <${RolloutList} name=${name} pages=${pages} />`;
}
