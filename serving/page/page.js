// The page over the server's own API. All text of documents and answers is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const PAGE = 20;
const PARTS = { queue: "waiting", retrieve: "finding documents", fetch: "fetching memory", decode: "generating" };
const number = new Intl.NumberFormat("en");

function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; size >= 1000 && unit < units.length - 1; unit++) size /= 1000;
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

const seconds = (time) => (time < 1 ? `${(1000 * time).toFixed(1)} ms` : `${time.toFixed(2)} s`);
const plural = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;

// Requests

class ApiError extends Error {}

async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    await askForKey();
    return request(path, options);
  }
  const body = await response.json().catch(() => ({}));
  throw new ApiError(body.error?.message ?? `The server answers with status ${response.status}.`);
}

const json = async (path) => (await request(path)).json();

let asking = null;
function askForKey() {
  asking ??= new Promise((resolve) => {
    sessionStorage.removeItem("key");
    $("key").value = "";
    $("key-dialog").showModal();
    $("key-form").onsubmit = () => {
      sessionStorage.setItem("key", $("key").value.trim());
      asking = null;
      resolve();
    };
  });
  return asking;
}
$("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

// States: one place tells whether something is loading, empty or wrong.

function state(place, text) {
  place.replaceChildren(text ? el("p", { className: "state", textContent: text }) : "");
}

function failure(place, error, again) {
  const message = error instanceof ApiError ? error.message : `Something went wrong in this page: ${error.message}`;
  const button = again ? el("button", { className: "quiet", type: "button", textContent: "Try again", onclick: again }) : null;
  place.replaceChildren(el("p", { className: "error" }, message, button));
}

// Documents

const model = () => encodeURIComponent($("model").value);
const documentPath = (id) => `v1/documents/${encodeURIComponent(id)}?model=${model()}`;

function card({ id, title, score, memory_tokens }) {
  const name = el("div", { className: "title", textContent: title ?? "" });
  const meta = el("div", { className: "meta" });
  if (typeof score === "number") meta.append(el("span", { textContent: `score ${score.toFixed(2)}` }));
  if (memory_tokens !== null) meta.append(el("span", { textContent: plural(memory_tokens, "memory token") }));
  return { name, meta, item: el("li", {}, name, el("div", { className: "id", textContent: id }), meta) };
}

function addSizes(meta, found) {
  if (found.memory_bytes !== null) meta.append(el("span", { textContent: `${bytes(found.memory_bytes)} as ${found.codec}` }));
  meta.append(el("span", { textContent: `from ${plural(found.tokens, "token")} of text` }));
  if (found.error) meta.append(el("span", { className: "error", textContent: `not compressed: ${found.error}` }));
}

function textOf(load) {
  const content = el("div", { className: "text" });
  const details = el("details", {}, el("summary", { textContent: "Text" }), content);
  details.addEventListener("toggle", async () => {
    if (!details.open || content.dataset.loaded) return;
    content.textContent = "Loading…";
    try {
      content.textContent = (await load()).text ?? "The store does not keep the text.";
      content.dataset.loaded = "yes";
    } catch (error) {
      failure(content, error);
    }
  });
  return details;
}

// Ask

let running = null;

async function ask(event) {
  event?.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  const ids = $("ids").value.split("\n").map((id) => id.trim()).filter(Boolean);
  const body = {
    model: $("model").value, messages: [{ role: "user", content: question }], stream: true,
    stream_options: { include_usage: true },
    ...($("tokens").value ? { max_tokens: Number($("tokens").value) } : {}),
    ...(ids.length ? { documents: ids } : { hits: Number($("hits").value) || 5 }),
  };
  running = new AbortController();
  $("result").hidden = false;
  for (const id of ["answer", "documents", "timings", "usage"]) $(id).replaceChildren();
  for (const [id, hidden] of [["answer", false], ["grounds", true], ["time", true]]) $(id).hidden = hidden;
  for (const [id, hidden] of [["send", true], ["stop", false]]) $(id).hidden = hidden;
  $("answer").setAttribute("aria-busy", "true");
  state($("answer-state"), "Finding documents…");
  $("result").scrollIntoView({ block: "nearest" });
  try {
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    for await (const chunk of events(await request("v1/chat/completions", options))) show(chunk);
    if (!$("answer").textContent) state($("answer-state"), "The answer is empty.");
  } catch (error) {
    $("answer").hidden = !$("answer").textContent;
    if (error.name === "AbortError") state($("answer-state"), "Stopped.");
    else failure($("answer-state"), error, () => ask());
  } finally {
    running = null;
    $("answer").removeAttribute("aria-busy");
    for (const [id, hidden] of [["send", false], ["stop", true]]) $(id).hidden = hidden;
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError("The connection to the server broke.");
    });
    if (done) break;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") ended = true;
      else yield JSON.parse(data);
    }
  }
  if (!ended) throw new ApiError("The connection to the server broke.");
}

function show(chunk) {
  if (chunk.error) throw new ApiError(chunk.error.message);
  const [choice] = chunk.choices;
  if (chunk.documents && choice) {
    state($("answer-state"), "Generating…");
    showDocuments(chunk.documents);
  }
  if (choice?.delta.content) $("answer").append(choice.delta.content);
  if (choice?.finish_reason) {
    state($("answer-state"), choice.finish_reason === "length" ? "The answer was cut at its longest length." : "");
  }
  if (chunk.usage) showUsage(chunk.usage, chunk.timings);
}

function showDocuments(documents) {
  $("grounds").hidden = false;
  for (const each of documents) {
    const { item, name, meta } = card(each);
    const loading = json(documentPath(each.id));
    loading.then((found) => {
      name.textContent = found.title ?? "";
      addSizes(meta, found);
    }, () => {});
    item.append(textOf(() => loading.catch(() => json(documentPath(each.id)))));
    $("documents").append(item);
  }
}

function showUsage(usage, timings) {
  $("time").hidden = false;
  const longest = Math.max(...Object.keys(PARTS).map((part) => timings[part]), 1e-9);
  for (const [part, name] of Object.entries(PARTS)) {
    const bar = el("div", { className: "bar" });
    bar.style.width = `${(100 * timings[part]) / longest}%`;
    $("timings").append(el("dt", { textContent: name }), el("dd", {}, bar), el("dd", { className: "number", textContent: seconds(timings[part]) }));
  }
  $("usage").textContent = `First token after ${seconds(timings.first_token)}, all after ${seconds(timings.total)}. `
    + `Prompt ${plural(usage.prompt_tokens, "token")}, of them ${number.format(usage.memory_tokens)} memory in the place of `
    + `${number.format(usage.text_tokens)} of text. Answer ${plural(usage.completion_tokens, "token")}.`;
}

// Browse

let offset = 0;
let turn = 0;

async function list() {
  const own = ++turn;
  const search = $("search").value.trim();
  $("list").setAttribute("aria-busy", "true");
  state($("list-state"), "Loading documents…");
  try {
    const query = `v1/documents?model=${model()}&offset=${offset}&limit=${PAGE}&search=${encodeURIComponent(search)}`;
    const page = await json(query);
    if (own !== turn) return;
    state($("list-state"), page.data.length ? "" : search ? "No document matches. Use other words." : "The store holds no documents.");
    $("list").replaceChildren(...page.data.map(listed));
    const first = page.data.length ? offset + 1 : offset;
    const range = `${number.format(first)} to ${number.format(offset + page.data.length)}`;
    $("place").textContent = search ? `Found: ${range}` : `${range} of ${number.format(page.total)}`;
    $("previous").disabled = offset === 0;
    $("next").disabled = search ? page.data.length < PAGE : offset + PAGE >= page.total;
    $("pager").hidden = $("previous").disabled && $("next").disabled;
  } catch (error) {
    if (own !== turn) return;
    $("list").replaceChildren();
    $("pager").hidden = true;
    failure($("list-state"), error, list);
  } finally {
    if (own === turn) $("list").removeAttribute("aria-busy");
  }
}

function listed(found) {
  const { item, meta } = card(found);
  addSizes(meta, found);
  item.append(textOf(() => json(documentPath(found.id))));
  return item;
}

function turnPage(step) {
  offset = Math.max(0, offset + step * PAGE);
  list().then(() => $("browse-title").scrollIntoView());
}

async function facts() {
  const rows = $("history").tBodies[0];
  $("store").replaceChildren();
  rows.replaceChildren();
  state($("store-state"), "Counting… A large store takes some seconds.");
  try {
    const store = await json(`v1/stores/${model()}`);
    state($("store-state"), "");
    const shown = {
      documents: number.format(store.documents), "without memory": number.format(store.failed_documents),
      "memory tokens": number.format(store.n_mem), "tokens of text": number.format(store.tokens_total),
      compression: store.compression ? `${store.compression.toFixed(1)} tokens in one` : "–",
      codec: store.codec, memory: `${store.stage}, ${store.dim} wide`, "memory size": bytes(store.payload_bytes),
      "per document": store.payload_bytes_per_document ? bytes(Math.round(store.payload_bytes_per_document)) : "–",
      "all files": bytes(store.table_bytes), version: number.format(store.version),
      searchable: store.searchable === null ? "no" : plural(store.searchable, "document"),
    };
    for (const [name, value] of Object.entries(shown)) {
      $("store").append(el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value })));
    }
    for (const each of store.history) {
      const cells = [each.number, new Date(each.time).toLocaleString(), number.format(each.documents), bytes(each.bytes)];
      rows.append(el("tr", {}, ...cells.map((cell) => el("td", { textContent: cell }))));
    }
  } catch (error) {
    failure($("store-state"), error, facts);
  }
}

// Views

function route() {
  const view = location.hash === "#browse" ? "browse" : "ask";
  for (const name of ["ask", "browse"]) {
    $(name).hidden = name !== view;
    if (name === view) $(`to-${name}`).setAttribute("aria-current", "page");
    else $(`to-${name}`).removeAttribute("aria-current");
  }
  if (!$("model").disabled && view === "browse" && !$("list").childElementCount) browse();
  if (view === "ask") $("question").focus();
}

function browse() {
  offset = 0;
  list();
  facts();
}

async function start() {
  state($("problem"), "Loading…");
  try {
    const { data } = await json("v1/models");
    $("model").replaceChildren(...data.map(({ id }) => el("option", { value: id, textContent: id })));
    $("model").disabled = false;
    state($("problem"), "");
    route();
  } catch (error) {
    failure($("problem"), error, start);
  }
}

$("ask-form").addEventListener("submit", ask);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
});
$("stop").addEventListener("click", () => running?.abort());
$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  offset = 0;
  list();
});
$("previous").addEventListener("click", () => turnPage(-1));
$("next").addEventListener("click", () => turnPage(1));
$("model").addEventListener("change", () => {
  $("list").replaceChildren();
  $("result").hidden = true;
  route();
});
addEventListener("hashchange", route);
route();
start();
