// Asks for the status while somebody looks, says how old what is shown is, and hands it to the two views.

import { byId, say, timeOf } from "./dom.js";
import { show } from "./overview.js";
import { offer } from "./playground.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const MOST_MS = 8000; // Between two tries while nobody answers.
const SHARE = 10; // A status that takes long to make is asked for less often: at most a tenth of the time.

let adminKey = "";
let timer = 0;
let asking = false;
let failures = 0;
let last = null; // The newest status.

async function ask() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const began = performance.now();
  let next = EVERY_MS;
  try {
    const headers = adminKey === "" ? {} : { authorization: `Bearer ${adminKey}` };
    const answer = await fetch("/status", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    const body = await answer.json();
    if (answer.ok) {
      failures = 0;
      last = body;
      accept(body);
    } else if (answer.status === 401 || answer.status === 403 || answer.status === 429) {
      refused(answer.status, body.error.message);
      next = MOST_MS;
      if (answer.status === 401) return; // until there is a key
    } else {
      throw new Error(`status ${answer.status}`);
    }
    next = Math.max(next, SHARE * (performance.now() - began));
  } catch (error) {
    failures += 1;
    next = Math.min(MOST_MS, EVERY_MS * 2 ** (failures - 1));
    lost();
  } finally {
    asking = false;
    clearTimeout(timer);
    if (!(document.body.dataset.link === "locked")) timer = setTimeout(ask, next);
  }
}

function accept(status) {
  byId("overview").hidden = false;
  byId("notice").hidden = true;
  link(status.health === "ready" ? "live" : "unready", status.health === "ready" ? "Live" : status.health === "draining" ? "Shutting down" : "Not ready");
  document.title = status.health === "ready" ? "Nenya" : `Nenya: ${status.health}`;
  show(status);
  offer(status);
}

function lost() {
  const since = last === null ? "" : ` What is shown is from ${timeOf(last.now)}.`;
  notice(`The router doesn’t answer.${since} Trying again.`, false);
  link("stale", last === null ? "No answer" : `Stale since ${timeOf(last.now)}`);
  document.title = "Nenya: no answer";
}

function refused(status, message) {
  byId("overview").hidden = true;
  adminKey = "";
  notice(message, status === 401);
  link(status === 401 ? "locked" : "refused", status === 401 ? "Locked" : "Refused");
}

function notice(text, asksForKey) {
  byId("notice").hidden = false;
  byId("unlock").hidden = !asksForKey;
  say(byId("notice-text"), text);
}

/** Say it where it changes: the line is read out, so it must not change every second. */
function link(state, text) {
  document.body.dataset.link = state;
  say(byId("link"), text);
}

byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  adminKey = byId("admin-key").value.trim();
  byId("admin-key").value = "";
  document.body.dataset.link = "waiting";
  ask();
});

document.addEventListener("visibilitychange", () => {
  if (document.body.dataset.link !== "locked") ask();
});
addEventListener("online", () => ask());

// Small screens show one view at a time: the address says which.

function turn() {
  const view = location.hash === "#playground" ? "playground" : "status";
  document.body.dataset.view = view;
  for (const entry of document.querySelectorAll("nav a")) {
    if (entry.hash === `#${view}`) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  }
}

addEventListener("hashchange", turn);
turn();
ask();
