"use strict";
// The frame of every page: header, the page that the address names, keys.

const PAGES = { rollouts: Rollouts, rollout: Rollout, group: Group, prompt: PromptPage, groups: Groups, try: Try };
const KEYS = [
  ["r", "list of runs"], ["1 2 3 4", "overview, rollouts, groups, trial of the run"], ["/", "to the filter"], ["n p", "next, previous attempt"],
  ["m", "more rollouts"], ["← →", "through the tokens, once they have the focus"], ["t", "dark or light"], ["?", "this list"],
];
const helping = signal(false);

function Page() {
  const { parts, words } = address.value;
  const [first, name, page] = parts;
  if (first === "run" && name && page && PAGES[page]) return html`<${PAGES[page]} key=${`${name} ${page}`} name=${name} words=${words} />`;
  if (first === "run" && name && !page) return html`<${Run} key=${name} name=${name} />`;
  if (first === "compare") return html`<${Compare} words=${words} />`;
  if (!first) return html`<${Runs} />`;
  return html`<h1>No such page</h1><p><a href=${link([])}>The list of runs</a></p>`;
}

function App() {
  const title = address.value.parts.slice(1).join(" · ");
  useEffect(() => {
    document.title = title ? `${title} – coterie board` : "coterie board";
  }, [title]);
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>To the content</a>
    <header><a class="brand" href=${link([])}>coterie board</a>
      <span class="live ${live.value}" role="status">${live.value}</span>
      <span class="right"><button type="button" onClick=${() => (helping.value = !helping.value)} aria-expanded=${helping.value}>Keys</button>
      <button type="button" onClick=${switchTheme}>${(theme.value, shade() === "dark" ? "Light" : "Dark")}</button></span></header>
    ${helping.value && html`<aside class="help" aria-label="Keys"><dl>${KEYS.map(([keys, what]) => html`<div><dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${what}</dd></div>`)}</dl></aside>`}
    <main id="main" tabindex="-1"><${Page} /></main>`;
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input, select, textarea");
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    helping.value = false;
    if (typing) event.target.blur();
    return;
  }
  if (typing && event.target.type !== "checkbox" && event.target.type !== "radio") return;
  const [first, name] = address.value.parts;
  const press = (selector, act) => {
    const element = document.querySelector(selector);
    if (element) {
      event.preventDefault();
      act(element);
    }
  };
  if (event.key === "r") go([]);
  else if (event.key === "t") switchTheme();
  else if (event.key === "?") helping.value = !helping.value;
  else if (event.key === "/") press("#filter", (element) => element.focus());
  else if (event.key === "m") press("button.more", (element) => element.click());
  else if ("np".includes(event.key)) press(`a[data-key="${event.key}"]`, (element) => element.click());
  else if (first === "run" && name && "1234".includes(event.key) && TABS[Number(event.key) - 1]) go(["run", name, ...TABS[Number(event.key) - 1][2]]);
});

addEventListener("hashchange", () => {
  scrollTo(0, 0);
});

listen();
render(html`<${App} />`, document.getElementById("board"));
