// Files with their decisions, and the segments of the chosen one.

function status(file) {
  const decision = file.decision;
  if (!decision || decision.error) return "unknown";
  if (!decision.direct && !decision.fallback) return "empty";
  return !decision.fallback ? "direct" : decision.direct ? "partly" : "fallback";
}
const reasonsOf = file => file.decision && file.decision.reasons ? Object.entries(file.decision.reasons).sort((a, b) => b[1] - a[1]) : [];
const whyOf = file => file.decision && file.decision.error ? file.decision.error : reasonsOf(file).map(([reason, n]) => `${reason} ${bytes(n)}`).join(", ") || "–";
const shareOf = file => file.decision && !file.decision.error ? file.decision.direct / Math.max(1, file.decision.direct + file.decision.fallback) : -1;

function drawFiles() {
  const mappings = state.ledger ? state.ledger.mappings : [], of = new Map();
  for (const mapping of mappings) of.set(mapping.object, (of.get(mapping.object) || []).concat(mapping));
  const filter = $("filter").value.toLowerCase();
  const rows = files.filter(file => file.path.toLowerCase().includes(filter)).map(file => {
    const own = of.get(String(file.inode)) || [];
    return { ...file, own, direct: sum(own, m => m.bytes_direct), fallback: sum(own, m => m.bytes_fallback), processes: [...new Set(own.map(m => `${m.importer} ${m.pid}`))] };
  });
  text("files-sub", `${many(files.length, "file")}${filesComplete ? "" : ", and more that are not listed"}; what a map by importer cpu would be answered now`);
  const decision = file => {
    const d = file.decision, name = status(file), total = d && !d.error ? Math.max(1, d.direct + d.fallback) : 1;
    return [h("span", { class: "mix" }, h("u", { class: "direct", style: { width: 100 * (d && d.direct || 0) / total + "%" } }), h("u", { class: "fallback", style: { width: 100 * (d && d.fallback || 0) / total + "%" } })),
      h("span", { class: "tag " + name }, name)];
  };
  table("files", [
    { title: "file", class: "path", by: row => row.path, show: row => row.path },
    { title: "size", n: true, by: row => row.size, show: row => bytes(row.size) },
    { title: "decision", by: shareOf, mark: row => JSON.stringify(row.decision), show: decision },
    { title: "falls back for", by: whyOf, show: whyOf },
    { title: "mapped by", by: row => row.own.length, show: row => row.processes.slice(0, 3).join(", ") + (row.processes.length > 3 ? " +" + (row.processes.length - 3) : "") || "–" },
    { title: "direct", n: true, by: row => row.direct, show: row => row.direct ? bytes(row.direct) : "–" },
    { title: "fallback", n: true, by: row => row.fallback, show: row => row.fallback ? bytes(row.fallback) : "–" },
  ], rows, { key: row => row.inode, click: choose, sort: 0 });
  if (!files.length && !$("files").tHead) return;
  $("files").hidden = false;
}

async function choose(object) {
  chosen = chosen === object ? null : object;
  segments = null;
  draw();
  if (chosen && !chosen.startsWith("devmem-")) await loadSegments();
}

async function loadSegments() {
  const wanted = chosen;
  const answer = await ask("/api/file", "&inode=" + encodeURIComponent(wanted)).catch(error => ({ error: error.message }));
  if (wanted === chosen) { segments = answer; drawDetail(); }
}

function drawDetail() {
  const node = $("detail");
  node.hidden = !chosen || !segments;
  if (node.hidden) return;
  const mark = chosen + JSON.stringify(segments);
  if (node.mark_ === mark) return;
  node.mark_ = mark;
  const close = h("button", { class: "close", type: "button", on: { click: () => choose(chosen) } }, "close");
  if (segments.error) { node.replaceChildren(close, h("h3", null, "inode " + chosen), h("p", { class: "empty-note" }, segments.error)); return; }
  const total = Math.max(1, sum(segments.segments, s => s.length));
  const strip = h("div", { id: "strip" }, ...segments.segments.slice(0, 400).map(s => h("u", {
    class: s.reason ? "fallback" : "direct", style: { width: 100 * s.length / total + "%" },
    title: `${bytes(s.offset)} + ${bytes(s.length)}: ${s.reason || s.path}` })));
  const head = ["offset", "length", "path", "reason", "on the device", "also refused for"];
  const lines = segments.segments.map(s => [s.offset, bytes(s.length), s.path, s.reason || "–", s.device_offset === null || s.reason ? "–" : s.device_offset, s.refusals.slice(1).join(" ") || "–"]);
  const right = at => at < 2 || at === 4 ? "n" : null;
  node.replaceChildren(close, h("h3", null, segments.path), strip,
    h("div", { class: "inner" }, h("table", { id: "segments" },
      h("thead", null, h("tr", null, ...head.map((title, at) => h("th", { class: right(at) }, title)))),
      h("tbody", null, ...lines.map(line => h("tr", null, ...line.map((cell, at) => h("td", { class: right(at) }, String(cell)))))))),
    h("ul", { class: "remedies" }, ...segments.refusals.map(r => h("li", null, h("b", null, r.reason), `: ${r.text}; ${r.remedy}`, ...(r.command ? [h("code", null, r.command)] : [])))));
  if (segments.segments_left_out) node.append(h("p", { class: "empty-note" }, `and ${many(segments.segments_left_out, "segment")} more`));
}
