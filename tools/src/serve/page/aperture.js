// The aperture as squares, by the file that holds them.

// Files by object: a number of an inode, or a name of device memory.
const paths = () => new Map(files.map(file => [String(file.inode), file.path]));
const colours = new Map();
const colour = object => { if (!colours.has(object)) colours.set(object, `var(--c${colours.size % COLOURS})`); return colours.get(object); };
const nameOf = (object, names) => names.get(object) || (object.startsWith("devmem-") ? object : "inode " + object);

function owners(ledger) {
  const held = ledger.windows.filter(w => !w.object.startsWith("devmem-")).map(w => ({ ...w, bytes: w.length, pin: false }));
  const pinned = ledger.pins.filter(p => !p.object.startsWith("devmem-")).map(p => ({ ...p, device_offset: null, pin: true, state: "live" }));
  return held.concat(pinned);
}

function drawMap() {
  const aperture = state.info.aperture, ledger = state.ledger;
  if (!aperture) { text("map-sub", "This mount has no aperture: everything falls back (NoAperture)."); $("map").replaceChildren(); $("legend").replaceChildren(); return; }
  const size = 2 ** Math.max(16, Math.ceil(Math.log2(aperture.capacity_bytes / 352)));
  const count = Math.ceil(aperture.capacity_bytes / size), identity = aperture.kind === "identity";
  text("map-sub", `${aperture.name}, ${aperture.path}: ${bytes(aperture.used_bytes)} of ${bytes(aperture.capacity_bytes)} in ${many(aperture.windows, "window")}; a square is ${bytes(size)}` +
    (identity ? ", by the place of a window's first block" : ", in the order of files"));
  const cells = Array.from({ length: count }, () => null);
  const names = paths(), holders = ledger ? owners(ledger) : [];
  let at = 0;
  for (const owner of holders) {
    const from = identity && owner.device_offset !== null ? owner.device_offset : at;
    const length = identity ? owner.block_bytes || owner.bytes : owner.bytes;
    for (let cell = Math.floor(from / size); cell < count && cell * size < from + length; cell++) {
      const share = Math.min(from + length, (cell + 1) * size) - Math.max(from, cell * size);
      if (!cells[cell] || share > cells[cell].share) cells[cell] = { owner, share };
    }
    at += owner.bytes;
  }
  const map = $("map");
  while (map.children.length > count) map.lastChild.remove();
  while (map.children.length < count) {
    const node = h("div", { class: "cell" });
    node.addEventListener("click", () => node.object_ && choose(node.object_));
    map.append(node);
  }
  cells.forEach((cell, number) => {
    const node = map.children[number], owner = cell && cell.owner;
    node.object_ = owner ? owner.object : null;
    node.className = "cell" + (owner ? " held" + (owner.pin ? " pin" : "") + (owner.state === "revoking" ? " revoking" : "") + (owner.object === chosen ? " chosen" : "") : "");
    if (owner) node.style.setProperty("--c", colour(owner.object));
    node.title = owner ? `${nameOf(owner.object, names)} at ${bytes(owner.offset)}, ${owner.pin ? "pinned" : owner.state === "revoking" ? "being revoked, waits for " + many(owner.holders, "holder") : many(owner.holders, "holder")}` : "free";
  });
  if (!ledger) { $("legend").replaceChildren(h("p", { class: "empty-note" }, "Who holds what, only the owner of the mount is told.")); return; }
  const groups = new Map();
  for (const owner of holders) {
    const group = groups.get(owner.object) || { bytes: 0 };
    group.bytes += owner.bytes;
    groups.set(owner.object, group);
  }
  const who = object => [...new Set(ledger.mappings.filter(m => m.object === object).map(m => m.importer + " " + m.pid))];
  const shown = [...groups].sort((a, b) => b[1].bytes - a[1].bytes).slice(0, 12).map(([object, group]) => {
    const processes = who(object), by = processes.length ? processes.slice(0, 2).join(", ") + (processes.length > 2 ? " +" + (processes.length - 2) : "") : "no mapping listed";
    return h("button", { type: "button", "data-object": object, style: { "--c": colour(object) }, on: { click: () => choose(object) } },
      h("i"), h("b", null, nameOf(object, names)), h("span", null, `${by} · ${bytes(group.bytes)}`));
  });
  const mark = shown.map(node => node.textContent + node.dataset.object).join("|");
  if ($("legend").mark_ !== mark) { $("legend").mark_ = mark; $("legend").replaceChildren(...shown); }
}
