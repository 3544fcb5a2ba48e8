// The status as tables. `show` is called with each new document; everything else keeps its place.

import { NONE, ago, attr, bar, byId, count, h, keyed, momentOf, plural, rate, row, say, seconds, span, sparkline, twoLines } from "./dom.js";

const BUCKETS = 60;
const MOST_ROWS = 200; // More is no table that anybody reads: the filter finds the rest.
const FILTER_FROM = 10;

let shown = null;

/** The points of a history: [tick, requests, errors, output tokens, first token, worst first token, answer]. */
function pointsOf(history) {
  return history.map(([tick, requests, errors, tokens, first, worst, answer]) => (
    { back: shown.tick - tick, requests, errors, tokens, first, worst, answer }
  ));
}

export function show(status) {
  shown = status;
  tiles(status);
  models(status.models, status.targets);
  targets(status);
  engines(status);
  errors(status);
  say(byId("version"), `Nenya ${status.version}`);
}

byId("filter").addEventListener("input", () => shown !== null && targets(shown));

// Totals

const TILES = [
  ["Requests/s", (s) => rate(s.rates.requests_per_s), (p) => p.requests, "requests ended"],
  ["Errors/s", (s) => rate(s.rates.errors_per_s), (p) => p.errors, "errors"],
  ["Output tokens/s", (s) => rate(s.rates.output_tokens_per_s), (p) => p.tokens, "tokens written"],
  ["First token", (s) => seconds(s.rates.first_token_s), (p) => p.first, "mean time to the first token"],
  ["In flight", (s) => count(s.inflight), null, ""],
  ["Waiting", (s) => count(s.waiting), null, ""],
];

function tiles(status) {
  const points = pointsOf(status.history);
  keyed(byId("tiles"), TILES, ([name]) => name, makeTile, (tile, [name, value, of, words]) => {
    say(tile.value, value(status));
    attr(tile, "data-tone", name === "Errors/s" && status.rates.errors_per_s > 0 ? "bad" : name === "Waiting" && status.waiting > 0 ? "warn" : "");
    if (of === null) return;
    // A bucket without a request is a nought in counts and a gap in times.
    const series = name === "First token" ? points.map((p) => ({ ago: p.back, value: p.first })) : filled(points, of);
    tile.spark.show(series, `${words}, last five minutes`);
  });
  const t = status.totals;
  const parts = t.requests + t.limited === 0
    ? ["no requests yet"]
    : [
        plural(t.requests, "request", "requests"),
        plural(t.errors, "error", "errors"),
        t.client_gone > 0 ? `${count(t.client_gone)} left early` : null,
        t.limited > 0 ? `${count(t.limited)} refused by limits` : null,
        `${count(t.input_tokens)} tokens read`,
        `${count(t.output_tokens)} written`,
        t.cost_usd > 0 ? `$${t.cost_usd.toFixed(t.cost_usd < 1 ? 4 : 2)}` : null,
      ];
  say(byId("since"), `Up ${span(status.uptime_s)}: ${parts.filter((part) => part !== null).join(", ")}. Rates are of the last minute.`);
}

/** Every bucket since the start that is over, at most those that are shown: the present one would look like a drop. */
function filled(points, of) {
  const length = Math.min(BUCKETS, Math.ceil(shown.uptime_s / shown.bucket_s) + 1);
  const values = new Array(length).fill(0);
  for (const p of points) if (p.back < length) values[length - 1 - p.back] = of(p);
  return points.length === 0 ? [] : values.slice(0, -1).map((value, i) => ({ ago: length - 1 - i, value }));
}

function makeTile([name, , of]) {
  const tile = h("div", { class: "tile" });
  tile.value = h("dd");
  tile.append(h("dt", {}, name), tile.value);
  if (of !== null) {
    tile.spark = sparkline(BUCKETS);
    tile.append(h("dd", { class: "trend" }, tile.spark));
  }
  return tile;
}

// Models

const MODEL = [
  ["name", "", "name"], ["targets", "Targets"], ["waiting", "Waiting", "num"], ["requests", "Requests/s", "num"],
  ["errors", "Errors/s", "num"], ["first", "First token", "num"], ["tokens", "Tokens/s", "num"],
];

function models(list, all) {
  const states = new Map(all.map((target) => [target.id, target.state]));
  keyed(byId("models"), list, (model) => model.name, () => row(MODEL), (line, model) => {
    const { cell } = line;
    const about = model.targets.length > 1 ? [model.policy.replaceAll("_", " ")] : [];
    if (model.aliases.length > 0) about.push(`also ${model.aliases.join(", ")}`);
    twoLines(cell.name, model.name, about.join(" · "));
    const all = model.targets.length;
    const full = model.targets.filter((id) => states.get(id) === "full").length;
    const admit = model.admitting === all ? (all === 1 ? "1 admits" : `all ${count(all)} admit`) : `${count(model.admitting)} of ${count(all)} admit`;
    twoLines(cell.targets, admit, full > 0 ? `${count(full)} full` : "");
    attr(cell.targets, "data-tone", model.admitting + full === 0 ? "bad" : model.admitting < all ? "warn" : "");
    const by = model.waiting_by_priority;
    const priorities = by.some((one) => one.priority !== 0) ? by.map((one) => `${count(one.requests)} at priority ${one.priority}`).join(", ") : "";
    twoLines(cell.waiting, count(model.waiting), priorities);
    attr(cell.waiting, "title", `There is room for ${count(model.most_waiting)}`);
    attr(cell.waiting, "data-tone", model.waiting > 0 ? "warn" : "");
    rates(cell, model.rates);
  });
}

function rates(cell, its) {
  say(cell.requests, rate(its.requests_per_s));
  say(cell.errors, rate(its.errors_per_s));
  attr(cell.errors, "data-tone", its.errors_per_s > 0 ? "bad" : "");
  say(cell.first, seconds(its.first_token_s));
  say(cell.tokens, rate(its.output_tokens_per_s));
}

// Targets

const TARGET = [
  ["id", "", "name"], ["state", "State"], ["inflight", "In flight", "num"], ["tokens", "Tokens/s", "num"],
  ["first", "First token, 5 min", "trend-cell"], ["quota", "Limits left", "limits"],
];
const TONES = {
  admitting: "good", full: "warn", paused: "warn", probing: "warn", starting: "warn", restarting: "bad", ejected: "bad", failed: "bad",
  stopped: "bad",
};

function targets(status) {
  const all = status.targets;
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter((word) => word !== "");
  const text = (one) => [one.id, one.state, ...one.models].join(" ").toLowerCase();
  const found = words.length === 0 ? all : all.filter((one) => words.every((word) => text(one).includes(word)));
  byId("filter-box").hidden = all.length < FILTER_FROM;
  const troubled = all.filter((one) => one.state !== "admitting" && one.state !== "full").length;
  say(byId("targets-note"), troubled === 0 ? "" : `${count(troubled)} of ${count(all.length)} take no requests`);
  keyed(byId("targets"), found.slice(0, MOST_ROWS), (one) => one.id, makeTarget, updateTarget);
  byId("targets-more").hidden = words.length === 0 && found.length <= MOST_ROWS;
  say(byId("targets-more"), found.length > MOST_ROWS
    ? `${count(found.length - MOST_ROWS)} more; the filter finds them.`
    : `${count(found.length)} of ${count(all.length)} shown.`);
}

function makeTarget() {
  const line = row(TARGET);
  line.state = h("span", { class: "state" });
  line.why = h("span", { class: "second" });
  line.cell.state.append(line.state, line.why);
  line.spark = sparkline(BUCKETS);
  line.mean = h("span", { class: "mean" });
  line.of = h("span", { class: "second" }, "whole answers");
  line.cell.first.append(h("span", { class: "trend-line" }, line.spark, line.mean), line.of);
  line.bars = h("div", { class: "bars" });
  line.cell.quota.append(line.bars);
  return line;
}

function updateTarget(line, one) {
  const { cell } = line;
  const serves = one.models.join(", ");
  twoLines(cell.id, one.id, one.models.length === 1 && serves === one.id ? one.kind : `${one.kind} of ${serves}`);
  say(line.state, one.state);
  attr(line.state, "data-tone", TONES[one.state] ?? "");
  const why = because(one);
  say(line.why, why);
  line.why.hidden = why === "";
  const inflight = one.most_inflight === null ? count(one.inflight) : `${count(one.inflight)} of ${count(one.most_inflight)}`;
  twoLines(cell.inflight, inflight, one.pending_tokens > 0 ? `${count(one.pending_tokens)} tokens to read` : "");
  const single = one.rates.stream_tokens_per_s;
  twoLines(cell.tokens, rate(one.rates.output_tokens_per_s), single === null ? "" : `${rate(single)} a stream`);
  trend(line, one);
  keyed(line.bars, one.quota, (gauge) => gauge.resource, () => bar(0, 1, ""), (node, gauge) => {
    const share = gauge.limit > 0 ? gauge.remaining / gauge.limit : 0;
    const resets = gauge.reset_s >= 1 ? `, whole in ${span(gauge.reset_s)}` : "";
    node.show(gauge.remaining, gauge.limit, `${count(gauge.remaining)} of ${count(gauge.limit)} ${gauge.resource.replaceAll("_", " ")}`, share < 0.1 ? "bad" : "");
    attr(node, "title", `${gauge.remaining} of ${gauge.limit} ${gauge.resource}${resets}`);
  });
  attr(cell.quota, "data-empty", one.quota.length > 0 ? null : one.kind === "engine" ? NONE : "none told");
}

function because(one) {
  if (one.state === "ejected") return one.until_s > 0 ? `probed in ${span(Math.ceil(one.until_s))}` : "the next request probes";
  if (one.state === "paused") return `for ${span(Math.ceil(one.until_s))} more`;
  return one.share < 1 ? `${Math.round(one.share * 100)} % of its share` : "";
}

function trend(line, one) {
  const points = pointsOf(one.history);
  // Where nobody streams there are no first tokens: then whole answers' times say how it does.
  const streams = points.some((p) => p.first !== null);
  const of = streams ? (p) => p.first : (p) => p.answer;
  const mean = streams ? one.rates.first_token_s : one.rates.answer_s;
  line.spark.show(
    points.map((p) => ({ ago: p.back, value: of(p), worst: streams ? p.worst : null, bad: p.errors > 0 })),
    `${streams ? "mean time to the first token" : "mean time of an answer"}, last five minutes`,
  );
  const answers = points.some((p) => of(p) !== null);
  say(line.mean, mean !== null ? seconds(mean) : points.length === 0 ? "no requests" : answers ? "idle" : "no answer");
  line.of.hidden = streams || !answers;
  attr(line.cell.first, "data-quiet", points.length === 0 ? "true" : null);
}

// Engines

const ENGINE = [
  ["name", "", "name"], ["state", "Process"], ["running", "Running", "num"], ["waiting", "Queued", "num"], ["kv", "KV cache"],
  ["restarts", "Restarts", "num"],
];
const PROCESS = { ready: "good", starting: "warn", loading: "warn", draining: "warn", stopped: "warn", backoff: "bad", failed: "bad" };

function engines(status) {
  byId("engines-section").hidden = status.engines.length === 0;
  keyed(byId("engines"), status.engines, (one) => one.name, makeEngine, (line, one) => {
    const { cell } = line;
    twoLines(cell.name, one.name, [...new Set([one.kind, one.model])].filter((part) => part !== "" && part !== one.name).join(" · "));
    say(line.state, one.state === "backoff" ? "restarting" : one.state);
    attr(line.state, "data-tone", PROCESS[one.state] ?? "");
    const why = one.loaded === null ? one.detail : `${Math.round(one.loaded * 100)} % loaded`;
    say(line.why, why);
    line.why.hidden = why === "";
    say(cell.running, one.slots === null ? count(one.running) : `${count(one.running)} of ${count(one.slots)}`);
    say(cell.waiting, count(one.waiting));
    attr(cell.waiting, "data-tone", one.waiting > 0 ? "warn" : "");
    line.kv.hidden = one.kv_tokens === null;
    line.kv.show(one.kv_tokens_used, one.kv_tokens ?? 0, `${count(one.kv_tokens_used)} of ${count(one.kv_tokens ?? 0)} tokens`, one.kv_tokens_used > 0.9 * (one.kv_tokens ?? Infinity) ? "bad" : "");
    attr(cell.kv, "data-empty", one.kv_tokens === null ? NONE : null);
    say(cell.restarts, count(one.restarts));
    attr(cell.restarts, "data-tone", one.restarts > 0 ? "warn" : "");
  });
}

function makeEngine() {
  const line = row(ENGINE);
  line.state = h("span", { class: "state" });
  line.why = h("span", { class: "second" });
  line.cell.state.append(line.state, line.why);
  line.kv = bar(0, 1, "");
  line.cell.kv.append(line.kv);
  return line;
}

// Errors

const ERROR = [["when", "When", "when"], ["what", "What", "name"], ["model", "Model"], ["target", "Target"], ["request", "Request"]];
const WHAT = {
  request: "a client got an error", attempt: "an attempt failed", target: "a target was left alone", engine: "an engine’s process ended",
  usage: "records of usage were lost",
};

function errors(status) {
  byId("no-errors").hidden = status.errors.length > 0;
  byId("errors-table").hidden = status.errors.length === 0;
  // The time of its first tells an error from later ones of its kind.
  const keyOf = (one) => [one.what, one.kind, one.model, one.target, one.first_at].join("\n");
  keyed(byId("errors"), status.errors, keyOf, makeError, (line, one) => {
    const { cell } = line;
    say(line.when, ago(Math.max(0, status.now - one.at)));
    attr(line.when, "datetime", new Date(one.at * 1000).toISOString());
    attr(line.when, "title", momentOf(one.at));
    const times = one.count > 1 ? ` × ${count(one.count)}` : "";
    const more = [WHAT[one.what] ?? one.what, one.status === null ? null : `status ${one.status}`, one.detail === "" ? null : one.detail];
    twoLines(cell.what, `${one.kind}${times}`, more.filter((part) => part !== null).join(" · "));
    for (const name of ["model", "target"]) {
      say(cell[name], one[name]);
      attr(cell[name], "data-empty", one[name] === "" ? NONE : null);
    }
    twoLines(cell.request, one.request_id, one.key_id === "" ? "" : `key ${one.key_id}`);
    attr(cell.request, "data-empty", one.request_id + one.key_id === "" ? NONE : null);
  });
}

function makeError() {
  const line = row(ERROR);
  line.when = h("time");
  line.cell.when.append(line.when);
  return line;
}
