// Rates, the latency of revocations, and refusals.

function nice(value) {
  const steps = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
  let unit = 1;
  while (value > 512 * unit) unit *= 1024;
  return unit * (steps.find(step => step * unit >= value) || 1024);
}

function drawRates() {
  const W = 480, H = 200, LEFT = 62, BOTTOM = 20, now = Date.now() / 1000;
  const points = history_.filter(point => now - point.t <= HISTORY_S);
  const top = nice(Math.max(1024, ...points.map(point => point.direct + point.fallback)));
  const x = t => LEFT + (W - LEFT) * (1 - (now - t) / HISTORY_S), y = v => (H - BOTTOM) * (1 - v / top) + 6;
  const node = h("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Bytes moved a second" });
  for (const share of [0, .5, 1]) {
    node.append(h("line", { class: "rule", x1: LEFT, x2: W, y1: y(top * share), y2: y(top * share) }));
    node.append(h("text", { x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end" }, bytes(top * share) + "/s"));
  }
  for (const [back, label] of [[120, "2 min ago"], [60, "1 min"], [0, "now"]])
    node.append(h("text", { x: x(now - back), y: H + 2, "text-anchor": back === 120 ? "start" : back ? "middle" : "end" }, label));
  const area = (low, high, name) => {
    if (points.length < 2) return;
    const up = points.map(point => `${x(point.t).toFixed(1)},${y(high(point)).toFixed(1)}`);
    const down = points.slice().reverse().map(point => `${x(point.t).toFixed(1)},${y(low(point)).toFixed(1)}`);
    node.append(h("path", { class: "area " + name, d: "M" + up.join("L") + "L" + down.join("L") + "Z" }));
  };
  area(() => 0, point => point.direct, "direct");
  area(point => point.direct, point => point.direct + point.fallback, "fallback");
  $("rates").replaceChildren(node);
}

function buckets() {
  const sums = new Map(), line = /^peerfs_revocation_cut_seconds_bucket\{trigger="[^"]*",le="([^"]+)"\} (\d+)$/gm;
  for (const [, edge, count] of state.metrics.matchAll(line)) {
    const seconds = edge === "+Inf" ? Infinity : Number(edge);
    sums.set(seconds, (sums.get(seconds) || 0) + Number(count));
  }
  let before = 0;
  return [...sums].sort((a, b) => a[0] - b[0]).map(([edge, total]) => { const count = total - before; before = total; return { edge, count }; });
}

// What clients gave back is none.
const revocations = () => state.info.revocations.filter(r => r.trigger !== "Unmap");

function drawLatency() {
  const list = buckets(), deadline = state.info.deadline_ms / 1e3, total = sum(list, b => b.count);
  const enforced = sum(revocations(), r => r.enforced), revoked = sum(revocations(), r => r.revoked);
  text("latency-sub", total ? `from trigger to cut, ${many(total, "revocation")} of ${many(revoked, "grant")}; ${enforced} cut at the deadline of ${state.info.deadline_ms} ms` : `none yet; the deadline is ${state.info.deadline_ms} ms`);
  if (!total) { $("latency").replaceChildren(); } else {
    const W = 700, H = 150, BOTTOM = 18, top = Math.max(...list.map(b => b.count)), step = W / list.length;
    const node = h("svg", { viewBox: `0 0 ${W} ${H + 6}`, role: "img", "aria-label": "Distribution of revocation latency" });
    node.append(h("line", { class: "rule", x1: 0, x2: W, y1: H - BOTTOM, y2: H - BOTTOM }));
    list.forEach((bucket, at) => {
      const height = bucket.count ? Math.max(2, (H - BOTTOM - 16) * bucket.count / top) : 0, left = at * step;
      const bar = h("rect", { class: "bar" + (bucket.edge > deadline * 1.05 ? " late" : ""), x: left + 3, width: step - 6, y: H - BOTTOM - height, height, rx: 2 });
      const label = bucket.edge === Infinity ? "more" : time(Math.round(bucket.edge * 1e9));
      bar.append(h("title", null, `up to ${label}: ${bucket.count}`));
      node.append(bar);
      if (bucket.count) node.append(h("text", { x: left + step / 2, y: H - BOTTOM - height - 4, "text-anchor": "middle" }, String(bucket.count)));
      node.append(h("text", { x: left + step - 3, y: H, "text-anchor": "end" }, label));
    });
    const beyond = list.findIndex(bucket => bucket.edge > deadline), place = (beyond < 0 ? list.length : beyond) * step;
    node.append(h("line", { class: "deadline", x1: place, x2: place, y1: 0, y2: H - BOTTOM }), h("text", { x: place - 5, y: 9, "text-anchor": "end" }, "deadline"));
    $("latency").replaceChildren(node);
  }
  const latency = (title, of, name) => ({ title, n: true, by: row => row[of][name], show: row => time(row[of][name]) });
  table("triggers", [
    plain("trigger", "trigger"), plain("grants", "revoked", { n: true }), plain("enforced", "enforced", { n: true }),
    latency("cut p50", "cut", "p50_ns"), latency("p99", "cut", "p99_ns"), latency("max", "cut", "max_ns"), latency("write-back p99", "write_back", "p99_ns"),
  ], state.info.revocations, { key: row => row.trigger, sort: 1, down: true });
}

function drawReasons() {
  const refused = Object.entries(state.info.refused).sort((a, b) => b[1] - a[1]).slice(0, 8), fallback = state.info.moved.fallback;
  const most = refused.length ? refused[0][1] : 1;
  const mark = JSON.stringify([refused, fallback]);
  if ($("reasons").mark_ === mark) return;
  $("reasons").mark_ = mark;
  $("reasons").replaceChildren(...refused.map(([reason, count]) => h("div", { class: "reason", "data-reason": reason },
    h("b", null, reason), h("div", null, h("u", { style: { width: 100 * count / most + "%" } })),
    h("span", null, `${count}× · ${bytes(fallback[reason] || 0)} moved`))));
  if (!refused.length) $("reasons").append(h("p", { class: "empty-note" }, "Nothing has been refused."));
}
