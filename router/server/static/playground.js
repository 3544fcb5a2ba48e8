// A chat with any model, through the router's own door: POST /v1/chat/completions, as any client would ask.

import { byId, count, h, keyed, rate, say, seconds } from "./dom.js";

const STORE = "nenya.playground";
const MOST_STORED = 2_000_000; // Characters; tabs may keep about five million.

/** The conversation: {role, content, thinking?, note?, error?, unheard?}. Kept in the tab, and gone with it. */
let turns = [];
let stopping = null; // Ends the answer under way; null where there is none.

const form = byId("ask");
const log = byId("log");
const message = byId("message");
const settings = { model: byId("model"), system: byId("system"), temperature: byId("temperature"), limit: byId("max-tokens") };
let wanted = ""; // The model of the last visit, until the list is there.

/** The status is known: which models there are, and whether a key is wanted. */
export function offer(status) {
  const select = settings.model;
  const names = status.models.map((model) => model.name);
  const chosen = select.value || wanted;
  if (select.disabled || names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    select.value = names.includes(chosen) ? chosen : names[0];
    select.disabled = false;
  }
  byId("key-field").hidden = !status.asks_for_keys;
  byId("send").disabled = stopping !== null;
}

// Asking

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!byId("send").disabled) form.requestSubmit();
  }
});

byId("stop").addEventListener("click", () => stopping?.abort());
log.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopping?.abort();
});
message.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopping?.abort();
});

byId("new-chat").addEventListener("click", () => {
  stopping?.abort();
  turns = [];
  draw();
  save();
  announce("A new chat.");
  message.focus();
});

async function send() {
  const text = message.value.trim();
  if (text === "" || stopping !== null || settings.model.value === "") return;
  message.value = "";
  const question = { role: "user", content: text };
  turns.push(question);
  const answer = { role: "assistant", content: "", note: "Waiting for the first token" };
  const asked = request();
  turns.push(answer);
  stopping = new AbortController();
  busy(true);
  draw();
  follow(true);
  const meter = new Meter();
  try {
    await stream(asked, answer, meter, stopping.signal);
    announce(`The answer is complete: ${meter.words()}`);
  } catch (error) {
    if (error.name === "AbortError") {
      answer.stopped = true;
      announce("Stopped.");
    } else {
      answer.error = error instanceof Refused ? error.told : { message: `The connection to the router broke: ${error.message}` };
      announce(`Error: ${answer.error.message}`);
    }
    if (answer.content === "") giveBack(question);
  }
  answer.note = meter.words(answer.stopped === true);
  stopping = null;
  busy(false);
  draw();
  follow(false);
  save();
}

/** Nobody answered it: it is no part of what is asked next, and can be sent again as it is. */
function giveBack(question) {
  question.unheard = true;
  message.value ||= question.content;
}

/** The body that a client would send. */
function request() {
  const messages = turns.filter((turn) => turn.content !== "" && !turn.unheard).map(({ role, content }) => ({ role, content }));
  const system = settings.system.value.trim();
  if (system !== "") messages.unshift({ role: "system", content: system });
  const body = { model: settings.model.value, messages, stream: true, stream_options: { include_usage: true } };
  if (settings.temperature.value !== "") body.temperature = Number(settings.temperature.value);
  if (settings.limit.value !== "") body.max_completion_tokens = Number(settings.limit.value);
  return body;
}

/** An error as the router told it. */
class Refused extends Error {
  constructor(error, status, headers) {
    super(error.message);
    this.told = {
      message: error.message, type: error.type, code: error.code, param: error.param, status,
      "request id": headers.get("x-request-id"), "retry after": headers.get("retry-after"),
    };
  }
}

/** What is measured of an answer, by this page's clock. */
class Meter {
  began = performance.now();
  first = null;
  latest = null;
  pieces = 0;
  target = "";
  attempts = "";
  usage = null;
  finish = "";

  heard() {
    this.latest = performance.now();
    this.first ??= this.latest;
    this.pieces += 1;
  }

  /** Tokens a second behind the first. Pieces of one packet have no time between them: then all the time counts. */
  speed(wrote) {
    const took = this.latest - this.first;
    return took < 100 ? (1000 * wrote) / (this.latest - this.began) : (1000 * (wrote - 1)) / took;
  }

  words(stopped = false) {
    const parts = [];
    if (stopped) parts.push("stopped");
    if (this.target !== "") parts.push(this.target);
    if (this.attempts > 1) parts.push(`attempt ${this.attempts}`);
    if (this.first !== null) {
      parts.push(`first token ${seconds((this.first - this.began) / 1000)}`);
      const wrote = this.usage?.completion_tokens ?? this.pieces;
      const about = this.usage === null ? "about " : "";
      if (wrote > 1) parts.push(`${about}${rate(this.speed(wrote))} tokens/s`);
    }
    if (this.usage !== null) parts.push(`${count(this.usage.prompt_tokens)} tokens read, ${count(this.usage.completion_tokens)} written`);
    if (this.finish !== "" && this.finish !== "stop") parts.push(`ended by ${this.finish}`);
    return parts.join(" · ");
  }
}

async function stream(body, answer, meter, signal) {
  const key = byId("key-field").hidden ? "" : byId("key").value.trim();
  const headers = { "content-type": "application/json", ...(key === "" ? {} : { authorization: `Bearer ${key}` }) };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) {
    const told = await response.json().catch(() => null); // A proxy in between may say anything.
    throw new Refused(told?.error ?? { message: `Status ${response.status}, without a reason.` }, response.status, response.headers);
  }
  meter.target = response.headers.get("x-nenya-target") ?? "";
  meter.attempts = Number(response.headers.get("x-nenya-attempts") ?? 1);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error, null, response.headers);
    if (chunk.usage) meter.usage = chunk.usage;
    hear(chunk.choices?.[0], answer, meter);
  }
  throw new Error("the answer ended without its end");
}

function hear(choice, answer, meter) {
  if (choice === undefined) return;
  const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
  const text = choice.delta?.content ?? choice.delta?.refusal ?? "";
  if (thought !== "" || text !== "") {
    meter.heard();
    answer.content += text;
    if (thought !== "") answer.thinking = (answer.thinking ?? "") + thought;
    answer.note = meter.words();
    drawSoon();
  }
  if (choice.finish_reason) meter.finish = choice.finish_reason;
}

/** The data of server-sent events; comments and other fields are passed over. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const whole = rest.split(/\r?\n\r?\n/);
    rest = whole.pop();
    for (const event of whole) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length > 0) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

// Showing

let frame = 0;

/** Once a frame, however many pieces come. */
function drawSoon() {
  frame ||= requestAnimationFrame(() => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    draw();
    if (atEnd) follow(false);
  });
}

function draw() {
  cancelAnimationFrame(frame);
  frame = 0;
  byId("no-chat").hidden = turns.length > 0;
  keyed(log, turns.map((turn, number) => ({ turn, number })), ({ number }) => number, makeTurn, updateTurn);
}

function makeTurn({ turn }) {
  const part = { who: h("h3", {}, turn.role === "user" ? "You" : "Answer") };
  part.thinking = h("p", { class: "text thinking" });
  part.thoughts = h("details", { hidden: true }, h("summary", {}, "Thinking"), part.thinking);
  part.text = h("p", { class: "text" });
  part.error = h("dl", { class: "error", hidden: true });
  part.note = h("p", { class: "meter" });
  const node = h("article", { class: turn.role }, part.who, part.thoughts, part.text, part.error, part.note);
  node.nenyaParts = part;
  return node;
}

function updateTurn(node, { turn, number }) {
  const part = node.nenyaParts;
  const last = number === turns.length - 1 && stopping !== null;
  node.setAttribute("aria-busy", String(last && turn.role === "assistant"));
  node.className = turn.role;
  say(part.who, turn.role === "user" ? "You" : "Answer");
  say(part.text, turn.content);
  part.text.hidden = turn.content === "";
  say(part.thinking, turn.thinking ?? "");
  part.thoughts.hidden = turn.thinking === undefined;
  say(part.note, turn.note ?? "");
  part.note.hidden = !turn.note;
  part.error.hidden = turn.error === undefined;
  const told = Object.entries(turn.error ?? {}).filter(([, value]) => value !== null && value !== undefined);
  part.error.replaceChildren(...told.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

function follow(smooth) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  log.scrollTo({ top: log.scrollHeight, behavior: smooth && !calm ? "smooth" : "instant" });
}

/** Send and Stop take turns; whoever stood on the one that goes is not left nowhere. */
function busy(is) {
  const [comes, goes] = is ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const stoodThere = document.activeElement === goes;
  byId("send").disabled = is;
  comes.hidden = false;
  goes.hidden = true;
  if (stoodThere) (is ? comes : message).focus();
}

function announce(text) {
  say(byId("said"), text);
}

// Keeping: in the tab, without the key.

function save() {
  const kept = {
    turns, model: settings.model.value, system: settings.system.value, temperature: settings.temperature.value, limit: settings.limit.value,
  };
  try {
    const text = JSON.stringify(kept);
    if (text.length <= MOST_STORED) sessionStorage.setItem(STORE, text);
  } catch {
    // A tab that may store nothing just forgets.
  }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
    if (kept === null) return;
    turns = kept.turns;
    wanted = kept.model;
    settings.system.value = kept.system;
    settings.temperature.value = kept.temperature;
    settings.limit.value = kept.limit;
    byId("more").open = kept.system !== "" || kept.temperature !== "" || kept.limit !== "";
  } catch {
    turns = [];
  }
}

form.addEventListener("change", save);
restore();
draw();
follow(false);
