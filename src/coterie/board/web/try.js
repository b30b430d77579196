"use strict";
// A checkpoint asked beside its base: a prompt of the run's data or a typed conversation, several answers, their rewards.

const TRYING = document.getElementById("board").dataset.try === "yes";
const SIDES = { model: "the checkpoint", base: "its base" };
const POLL = 400;

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const value = await response.json();
  if (!response.ok) throw new Error(value.error || `The board answered ${response.status}.`);
  return value;
}

/** The trial that was asked last; ask() begins another, cancel() calls it off. */
function useTrial(onDone) {
  const [trial, setTrial] = useState(null);
  const [problem, setProblem] = useState("");
  const current = useRef(null);
  const follow = async (id) => {
    while (current.current === id) {
      await new Promise((resolve) => setTimeout(resolve, POLL));
      try {
        const next = await get("try", { id });
        if (current.current !== id) return;
        setTrial(next);
        if (["done", "failed", "cancelled"].includes(next.state)) return next.state === "done" ? onDone(next) : undefined;
      } catch (error) {
        setProblem(error.message);
        return;
      }
    }
  };
  useEffect(() => () => {
    if (current.current) post(`/api/try/cancel?id=${current.current}`, {}).catch(() => {}); // whoever leaves the page waits for nothing
    current.current = null;
  }, []);
  const ask = async (body) => {
    setProblem("");
    try {
      const next = await post("/api/try", body);
      current.current = next.id;
      setTrial(next);
      follow(next.id);
    } catch (error) {
      setProblem(error.message);
    }
  };
  const cancel = () => post(`/api/try/cancel?id=${trial.id}`, {}).catch((error) => setProblem(error.message));
  const running = trial && !["done", "failed", "cancelled"].includes(trial.state);
  return { trial, problem, running, ask, cancel, clear: () => { current.current = null; setTrial(null); } };
}

function Try({ name, words }) {
  return html`<${RunHead} name=${name} tab="try" /><h1>Try it</h1>
    ${TRYING ? html`<${TryForm} name=${name} words=${words} />` : html`<p>This board only reads. One that was started with <code>coterie board --try</code> asks a checkpoint beside its base here: with a prompt of the run or one that you type, several times, and with the rewards of each answer.</p>`}`;
}

function TryForm({ name, words }) {
  const run = useAnswer("run", { run: name }, name);
  const prompts = useAnswer("prompts", { run: name });
  const [form, setForm] = useState({ source: words.prompt ? "data" : "typed", prompt: words.prompt || "", text: "", answer: "", checkpoint: words.step || "", beside: true, samples: 4, temperature: 0.7, max_tokens: 128, seed: 0 });
  const [said, setSaid] = useState({ model: [], base: [] });
  const [asked, setAsked] = useState(null);
  const set = (key, value) => setForm({ ...form, [key]: value });
  const state = useTrial(() => {});
  const rows = prompts.value ? prompts.value.rows : [];
  const conversation = (side) => [...said[side], { role: "user", content: form.text }];
  const submit = (event) => {
    event.preventDefault();
    if (state.running) return;
    const typed = form.source === "typed";
    const sides = form.beside ? ["model", "base"] : ["model"];
    const messages = typed ? Object.fromEntries(sides.map((side) => [side, conversation(side)])) : {};
    setAsked({ typed, messages, beside: form.beside });
    state.ask({
      run: name, checkpoint: form.checkpoint === "" ? null : Number(form.checkpoint), beside: form.beside, prompt: typed ? "" : form.prompt.trim(), messages,
      answer: typed ? form.answer : "", samples: Number(form.samples), temperature: Number(form.temperature), max_tokens: Number(form.max_tokens), seed: Number(form.seed),
    });
  };
  const goOn = (side, answer) => {
    const next = { ...said, [side]: [...asked.messages[side], { role: "assistant", content: answer.text }] };
    for (const other of Object.keys(asked.messages)) {
      const first = state.trial.sides[other] && state.trial.sides[other][0];
      if (other !== side && first) next[other] = [...asked.messages[other], { role: "assistant", content: first.text }];
    }
    setSaid(next);
    setForm({ ...form, text: "", answer: "" });
    state.clear();
    document.getElementById("typed").focus();
  };
  const numbers = [["samples", "Answers", 1, 16, 1], ["temperature", "Temperature", 0, 2, 0.1], ["max_tokens", "Tokens at most", 1, 2048, 1], ["seed", "Seed", 0, 2147483647, 1]];
  return html`<form class="try" onSubmit=${submit} aria-label="What to ask">
      <fieldset class="tools"><legend>Ask</legend>
        <label><input type="radio" name="source" checked=${form.source === "typed"} onChange=${() => set("source", "typed")} /> what I type</label>
        <label><input type="radio" name="source" checked=${form.source === "data"} onChange=${() => set("source", "data")} /> a prompt of the run</label></fieldset>
      ${form.source === "data"
        ? html`<div class="tools"><label>Prompt id <input class="long" type="search" list="prompt-ids" required value=${form.prompt} onInput=${(event) => set("prompt", event.target.value)} /></label>
            <datalist id="prompt-ids">${rows.map((row) => html`<option value=${row.prompt_id} />`)}</datalist>
            ${!!rows.length && html`<button type="button" onClick=${() => set("prompt", rows[Math.floor(Math.random() * rows.length)].prompt_id)}>Any</button>`}</div>
            <${Question} name=${name} prompt=${form.prompt === words.prompt || rows.some((row) => row.prompt_id === form.prompt) ? form.prompt : ""} />`
        : html`${Object.entries(said).some(([, messages]) => messages.length) && html`<div class="sides">${Object.entries(said).filter(([, messages]) => messages.length).map(([side, messages]) => html`<section aria-label=${`Conversation with ${SIDES[side]}`}><h2>With ${SIDES[side]}</h2>${messages.map((message) => html`<${Message} message=${{ ...message, characters: 0 }} />`)}</section>`)}</div>
              <p><button type="button" onClick=${() => { setSaid({ model: [], base: [] }); state.clear(); }}>New conversation</button></p>`}
            <label class="block">Message <textarea id="typed" rows="3" required value=${form.text} onInput=${(event) => set("text", event.target.value)} onKeyDown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}></textarea></label>
            <div class="tools"><label>Right answer, where rewards need one <input type="search" value=${form.answer} onInput=${(event) => set("answer", event.target.value)} /></label></div>`}
      <div class="tools"><label>Checkpoint <select value=${form.checkpoint} onChange=${(event) => set("checkpoint", event.target.value)}><option value="">newest</option>${(run.value ? run.value.checkpoints : []).map((step) => html`<option value=${step}>step ${step}</option>`)}</select></label>
        ${numbers.map(([key, label, least, most, step]) => html`<label class="number">${label} <input type="number" min=${least} max=${most} step=${step} required value=${form[key]} onInput=${(event) => set(key, event.target.value)} /></label>`)}
        <label><input type="checkbox" checked=${form.beside} onChange=${(event) => set("beside", event.target.checked)} /> its base beside it</label></div>
      <div class="tools"><button type="submit" disabled=${state.running}>Ask</button> ${state.running && html`<button type="button" onClick=${state.cancel}>Cancel</button>`}
        <span class="quiet small" role="status">${state.trial ? told(state.trial) : "The first answer takes as long as loading the model."}</span></div>
    </form>
    ${state.problem && html`<p class="problem" role="alert">${state.problem}</p>`}
    ${state.trial && state.trial.state === "failed" && html`<p class="problem" role="alert">${state.trial.error}</p>`}
    ${state.trial && asked && html`<${TrialAnswers} trial=${state.trial} asked=${asked} goOn=${goOn} />`}`;
}

/** What a prompt of the run asks, as its newest rollout stored it; nothing where none is found in a few pages. */
function Question({ name, prompt }) {
  const [group, setGroup] = useState(null);
  useEffect(() => {
    let gone = false;
    const look = async () => {
      for (let page = { next: "" }, asked = 0; prompt && page.next !== null && asked < 20 && !gone; asked += 1) {
        page = await get("rollouts", { run: name, prompt, cursor: page.next });
        if (page.rows.length) return get("group", { run: name, step: page.rows[0].step, prompt });
      }
      return null;
    };
    setGroup(null);
    look().then((value) => !gone && setGroup(value), () => {}); // a trial does not need it
    return () => (gone = true);
  }, [name, prompt]);
  if (!group) return null;
  return html`<section aria-label="What it asks">${group.messages.map((message) => html`<${Message} message=${message} />`)}
    ${group.answer && html`<p class="kept"><b>Answer in the data:</b> ${group.answer}</p>`}</section>`;
}

function told(trial) {
  if (trial.state === "waiting") return `waiting, place ${trial.place}`;
  if (trial.state === "loading") return trial.note || "starting";
  if (trial.state === "sampling") return `sampling; ${trial.note}`;
  return `${trial.state}${trial.state === "done" ? `, step ${trial.step}` : ""}${trial.note && trial.note.startsWith("The answers") ? `. ${trial.note}` : ""}`;
}

/** The answers of both sides beside each other, and their mean rewards. */
function TrialAnswers({ trial, asked, goOn }) {
  const sides = Object.keys(SIDES).filter((side) => trial.sides[side]);
  const parts = [...new Set(sides.flatMap((side) => trial.sides[side].flatMap((answer) => Object.keys(answer.parts || {}))))];
  const mean = (side, value) => {
    const values = trial.sides[side].map(value).filter((item) => typeof item === "number");
    return values.length ? number(values.reduce((a, b) => a + b, 0) / values.length) : "–";
  };
  const whole = sides.filter((side) => trial.sides[side].some((answer) => answer.whole));
  return html`
    ${!!whole.length && html`<div class="wide" tabindex="0" role="region" aria-label="Mean rewards"><table><thead><tr><th scope="col">Mean of ${number(trial.sides[whole[0]].length)}</th>${whole.map((side) => html`<th scope="col">${SIDES[side]}</th>`)}</tr></thead><tbody>
      <tr><th scope="row">reward</th>${whole.map((side) => html`<td>${mean(side, (answer) => answer.reward)}</td>`)}</tr>
      ${parts.map((part) => html`<tr><th scope="row"><span class="inset">part ${part}</span></th>${whole.map((side) => html`<td>${mean(side, (answer) => (answer.parts || {})[part])}</td>`)}</tr>`)}
      <tr><th scope="row">tokens</th>${whole.map((side) => html`<td>${mean(side, (answer) => answer.tokens)}</td>`)}</tr></tbody></table></div>`}
    <div class="sides">${sides.map((side) => html`<section aria-label=${`Answers of ${SIDES[side]}`}><h2>Answers of ${SIDES[side]}</h2>
      ${trial.sides[side].map((answer) => html`<article class="card answer" key=${answer.sample}><h3>#${answer.sample} <span class="value">${answer.whole ? `reward ${number(answer.reward)}` : `${answer.tokens} tokens …`}</span></h3>
        <div class="content">${answer.text || html`<span class="quiet">(empty)</span>`}</div>
        ${answer.error && html`<p class="problem small">${answer.error}</p>`}
        ${answer.whole && html`<p class="quiet small">${Object.entries(answer.parts).map(([part, value]) => html`${part} ${number(value)} · `)}${answer.tokens} tokens, stopped by ${answer.stop}</p>`}
        ${!!(answer.messages || []).length && html`<details><summary>Its ${answer.messages.length} messages</summary>${answer.messages.map((message) => html`<${Message} message=${{ ...message, characters: 0 }} />`)}</details>`}
        ${asked.typed && answer.whole && html`<p><button type="button" onClick=${() => goOn(side, answer)}>Go on from here</button></p>`}</article>`)}</section>`)}</div>`;
}
