// Asking again and again, and drawing what was answered.

function draw() {
  if (!state) return;
  const info = state.info;
  document.title = `peerfs ${info.mountpoint}`;
  text("where", info.mountpoint);
  text("what", `${info.device.name}, ${info.read_only ? "read-only" : "read-write"}, policy ${info.direct}, grants by ${info.grants}`);
  text("foot", `peerfs ${info.version}, server ${info.server_pid}, volume ${info.volume.uuid}: ${bytes(info.volume.free_bytes)} free of ${bytes(info.volume.capacity_bytes)}. This page changes nothing.`);
  drawTiles(); drawMap(); drawRates(); drawLatency(); drawReasons(); drawFiles(); drawDetail(); drawLedger();
}

async function ask(path, more) {
  const answer = await fetch(`${path}?token=${encodeURIComponent(token)}${more || ""}`, { cache: "no-store", signal: AbortSignal.timeout(15000) });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function remember(info) {
  const now = Date.now() / 1000, direct = info.moved["direct-window"] + info.moved["direct-bar"], fallback = sum(Object.values(info.moved.fallback), n => n);
  const before = remember.last;
  remember.last = { t: now, direct, fallback, pid: info.server_pid };
  if (!before || before.pid !== info.server_pid || now <= before.t) return;
  const rate = (a, b) => Math.max(0, (a - b) / (now - before.t));
  history_.push({ t: now, direct: rate(direct, before.direct), fallback: rate(fallback, before.fallback) });
  while (history_.length && now - history_[0].t > HISTORY_S + 5) history_.shift();
}

async function every(ms, work) {
  for (;;) {
    if (!document.hidden) {
      try { await work(); } catch (error) { trouble(error); }
    }
    await new Promise(done => setTimeout(done, ms));
  }
}
function trouble(error) {
  staleSince = staleSince || Date.now();
  $("live").className = "stale";
  text("live", "last seen " + age(Date.now() - staleSince) + " ago");
  $("gone").hidden = false;
  text("gone", error instanceof TypeError ? "peerfs serve does not answer any more." : error.message);
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
$("filter").addEventListener("input", () => state && drawFiles());
every(STATE_MS, async () => {
  state = await ask("/api/state");
  staleSince = 0;
  $("live").className = "";
  $("gone").hidden = true;
  text("live", "live");
  remember(state.info);
  draw();
});
every(FILES_MS, async () => {
  ({ files, complete: filesComplete } = await ask("/api/files"));
  draw();
  if (chosen && !chosen.startsWith("devmem-")) await loadSegments();
});
