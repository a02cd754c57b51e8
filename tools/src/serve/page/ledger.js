// Mappings, pins, device memory, and the numbers at the top.

function drawLedger() {
  const ledger = state.ledger, names = paths();
  const file = { title: "file", class: "path", by: row => nameOf(row.object, names), show: row => nameOf(row.object, names) };
  const who = { title: "importer", by: row => row.importer + row.pid, show: row => `${row.importer} · pid ${row.pid} · uid ${row.uid}` };
  const size = { title: "length", n: true, by: row => row.length, show: row => bytes(row.length) };
  const old = { title: "age", n: true, by: row => row.age_ms, show: row => age(row.age_ms) };
  const secret = "only the owner of the mount is told";
  text("mappings-sub", ledger ? (ledger.mappings.length ? many(ledger.mappings.length + ledger.mappings_left_out, "mapping") : "none") : secret);
  table("mappings", [file, who, size,
    { title: "grants", n: true, by: row => row.grants, show: row => String(row.grants) },
    { title: "direct", n: true, by: row => row.bytes_direct, show: row => bytes(row.bytes_direct) },
    { title: "fallback", n: true, by: row => row.bytes_fallback, show: row => bytes(row.bytes_fallback) }, old,
  ], ledger ? ledger.mappings.slice(0, 200) : [], { key: row => row.mapping, sort: 6, down: true });
  const info = state.info;
  text("pins-sub", `${bytes(info.pinned_bytes)} of ${bytes(info.pin_quota_bytes)} used${ledger ? "" : "; " + secret}`);
  table("pins", [file, { ...who, show: row => `${row.importer} · pid ${row.pid}` }, { title: "memory", n: true, by: row => row.bytes, show: row => bytes(row.bytes) },
    { title: "state", by: row => row.state, show: row => `${row.state}, ${row.write ? "write" : "read"}`, mark: row => row.state + row.write + row.kind }, old,
  ], ledger ? ledger.pins : [], { key: row => row.pin, sort: 4, down: true });
  const memory = state.device_memory;
  $("memory-section").hidden = !memory;
  if (!memory) return;
  text("memory-sub", `${many(memory.allocations.length, "allocation")}; ${bytes(memory.free_bytes)} free of ${bytes(memory.device_bytes)}; ${bytes(memory.main_bytes_used)} moved to main memory`);
  table("memory", [{ title: "allocation", class: "mono", by: row => row.id, show: row => row.object },
    { title: "owner", by: row => row.pid, show: row => `pid ${row.pid} · uid ${row.uid}` },
    { title: "size", n: true, by: row => row.bytes, show: row => bytes(row.bytes) },
    { title: "where", by: row => row.migrated, show: row => row.migrated ? "main memory" : "device" },
    { title: "mapped", by: row => row.mapped, show: row => row.mapped ? "yes" : "no" },
  ], memory.allocations, { key: row => row.id });
}

function drawTiles() {
  const info = state.info, last = history_[history_.length - 1] || { direct: 0, fallback: 0 }, aperture = info.aperture;
  const direct = info.moved["direct-window"] + info.moved["direct-bar"], fallback = sum(Object.values(info.moved.fallback), n => n);
  const revoked = sum(revocations(), r => r.revoked), enforced = sum(revocations(), r => r.enforced);
  const tiles = [
    ["direct", "directly", bytes(last.direct) + "/s", bytes(direct) + " since the mount", "direct"],
    ["fallback", "by fallback", bytes(last.fallback) + "/s", bytes(fallback) + " since the mount", "fallback"],
    ["aperture", "aperture", aperture ? Math.round(100 * aperture.used_bytes / aperture.capacity_bytes) + " %" : "none", aperture ? `${bytes(aperture.used_bytes)} of ${bytes(aperture.capacity_bytes)}` : "", ""],
    ["mappings", "mappings", String(info.mappings), `${many(info.contexts, "importer")}, ${many(info.windows, "window")}`, ""],
    ["revoked", "grants revoked", String(revoked), enforced ? enforced + " at the deadline" : "all acknowledged", ""],
    ["pins", "pins", String(info.pins), `${bytes(info.pinned_bytes)} of ${bytes(info.pin_quota_bytes)}`, ""],
  ];
  const parent = $("tiles");
  for (const [id, name, value, note, kind] of tiles) {
    let tile = $("tile-" + id);
    if (!tile) {
      tile = h("div", { class: "tile " + kind, id: "tile-" + id }, h("div", { class: "name" }, name), h("div", { class: "value" }), h("div", { class: "note" }));
      parent.append(tile);
    }
    tile.children[1].textContent = value;
    tile.children[2].textContent = note;
  }
}
