// Tables: rows are kept by their key, so that what is under the pointer stays what it was.
const sorts = {};
function table(id, columns, rows, options) {
  const node = $(id), start = sorts[id] || (sorts[id] = { column: options.sort || 0, down: !!options.down });
  if (!node.tHead) {
    const cells = columns.map((column, at) => {
      const turn = () => {
        sorts[id] = { column: at, down: sorts[id].column === at ? !sorts[id].down : !!column.n };
        draw();
      };
      return h("th", { class: "sorts" + (column.n ? " n" : ""), scope: "col" }, h("button", { type: "button", on: { click: turn } }, column.title));
    });
    node.append(h("thead", null, h("tr", null, ...cells)), h("tbody"));
    node.rows_ = new Map();
  }
  [...node.tHead.rows[0].cells].forEach((cell, at) => {
    if (at === start.column) cell.setAttribute("aria-sort", start.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  const by = columns[start.column].by, sign = start.down ? -1 : 1;
  const compare = (a, b) => { const x = by(a), y = by(b); return x < y ? -sign : x > y ? sign : options.key(a) < options.key(b) ? -1 : 1; };
  const body = node.tBodies[0], seen = new Set();
  rows.slice().sort(compare).forEach((row, at) => {
    const key = String(options.key(row));
    seen.add(key);
    let line = node.rows_.get(key);
    if (!line) {
      line = h("tr", { "data-key": key, class: options.click ? "row" : null, tabindex: options.click ? 0 : null });
      if (options.click) {
        line.addEventListener("click", () => options.click(key));
        line.addEventListener("keydown", event => { if (event.key === "Enter") options.click(key); });
      }
      columns.forEach(column => line.append(h("td", { class: [column.n && "n", column.class].filter(Boolean).join(" ") || null })));
      node.rows_.set(key, line);
    }
    columns.forEach((column, number) => {
      const cell = line.cells[number], mark = column.mark ? column.mark(row) : column.show(row);
      if (cell.mark_ === mark) return;
      cell.mark_ = mark;
      cell.replaceChildren(...[column.show(row)].flat());
      if (column.class === "path") cell.title = cell.textContent;
    });
    if (options.click) line.classList.toggle("chosen", key === chosen);
    if (body.rows[at] !== line) body.insertBefore(line, body.rows[at] || null);
  });
  for (const [key, line] of node.rows_) if (!seen.has(key)) { line.remove(); node.rows_.delete(key); }
  node.hidden = rows.length === 0;
}
const plain = (title, name, more) => ({ title, by: row => row[name], show: row => String(row[name]), ...more });
