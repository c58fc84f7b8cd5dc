"use strict";
// Sorting, filtering and paging of tables, and what figures say under the pointer. The page reads without it.
// Texts come from files: they are only ever set as text, never as markup.
(() => {
  const PAGE = 25;
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const compare = (left, right) => {
    if (left === null || right === null) return (left === null) - (right === null);
    return typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(String(right));
  };
  const ordered = (order, values, descending) => order.sort((a, b) => {
    const [left, right] = [values[a], values[b]];
    if (left === null || right === null) return (left === null) - (right === null);
    return descending ? compare(right, left) : compare(left, right);
  });

  // Heads of columns become buttons; `sort(column, descending)` is called for each click.
  const makeHeads = (table, sort) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = element("button", "", { type: "button" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(column, descending);
      });
    });
  };

  const valueOf = (cell) => {
    const text = cell.dataset.value;
    if (text === undefined) return null;
    const number = Number(text);
    return text.trim() !== "" && !Number.isNaN(number) ? number : text;
  };
  document.querySelectorAll(".rows:not([data-paged]) table[data-sortable]").forEach((table) => {
    const body = table.tBodies[0];
    makeHeads(table, (column, descending) => {
      const rows = [...body.rows];
      const values = rows.map((row) => valueOf(row.cells[column]));
      body.append(...ordered([...rows.keys()], values, descending).map((at) => rows[at]));
    });
  });

  document.querySelectorAll(".rows[data-paged]").forEach((box) => {
    const data = JSON.parse(box.querySelector("script.data").textContent);
    data.columns.forEach((column) => {
      if (!column.at) return;
      const { values, texts, at } = column;
      column.values = at.map((place) => values[place]);
      if (texts) column.texts = at.map((place) => texts[place]);
    });
    const table = box.querySelector("table");
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((head) => head.textContent.trim());
    const isText = heads.map((head) => head.classList.contains("text"));
    const chosen = new Set(data.emphasised);
    const count = data.columns[0].values.length;
    const textOf = (column, at) => {
      const { texts, values } = data.columns[column];
      return texts ? texts[at] : values[at] === null ? "–" : String(values[at]);
    };
    let haystack = null;
    let order = [...Array(count).keys()];
    let shown = order;
    let page = 0;

    const tools = element("div", "", { class: "tools" });
    const search = element("input", "", { type: "search", "aria-label": "filter rows", placeholder: "filter rows" });
    const back = element("button", "previous", { type: "button" });
    const forth = element("button", "next", { type: "button" });
    const where = element("span", "", { "aria-live": "polite" });
    tools.append(search, back, forth, where);
    // Columns of a few texts can be chosen from.
    const chosenValues = new Map();
    names.forEach((name, column) => {
      if (!isText[column]) return;
      const values = [...new Set(data.columns[column].values)].filter((value) => value !== null && value !== "");
      if (values.length < 2 || values.length > 12) return;
      const select = element("select", "", { "aria-label": `only ${name}` });
      select.append(element("option", `${name}: all`, { value: "" }));
      values.sort().forEach((value) => select.append(element("option", String(value), { value: String(value) })));
      select.addEventListener("change", () => {
        if (select.value) chosenValues.set(column, select.value);
        else chosenValues.delete(column);
        filter();
      });
      tools.append(select);
    });
    box.insertBefore(tools, box.firstChild);

    const draw = () => {
      const first = page * PAGE;
      body.replaceChildren(...shown.slice(first, first + PAGE).map((at) => {
        const row = element("tr", "", chosen.has(at) ? { class: "chosen" } : {});
        row.append(...names.map((_, column) => element("td", textOf(column, at), isText[column] ? { class: "text" } : {})));
        return row;
      }));
      const last = Math.min(first + PAGE, shown.length);
      where.textContent = `${shown.length ? first + 1 : 0} to ${last} of ${shown.length.toLocaleString("en")}`;
      back.disabled = page === 0;
      forth.disabled = last >= shown.length;
    };
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length && !haystack) {
        haystack = order.slice().sort((a, b) => a - b).map((at) => names.map((_, column) => textOf(column, at)).join(" ").toLowerCase());
      }
      const matches = (at) => words.every((word) => haystack[at].includes(word))
        && [...chosenValues].every(([column, value]) => String(data.columns[column].values[at]) === value);
      shown = words.length || chosenValues.size ? order.filter(matches) : order;
      page = 0;
      draw();
    };
    search.addEventListener("input", filter);
    back.addEventListener("click", () => { page -= 1; draw(); });
    forth.addEventListener("click", () => { page += 1; draw(); });
    makeHeads(table, (column, descending) => {
      order = ordered([...Array(count).keys()], data.columns[column].values, descending);
      filter();
    });
    draw();
  });

  // Folded tables open where a link leads to them.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (fold) fold.open = true;
    if (target) target.scrollIntoView();
  };
  window.addEventListener("hashchange", unfold);
  if (location.hash) unfold();

  document.querySelectorAll("figure.speaks").forEach((figure) => {
    const marks = JSON.parse(figure.querySelector("script.marks").textContent);
    const drawing = figure.querySelector(".drawing");
    const svg = drawing.querySelector("svg");
    const boxes = marks.width.length > 0;
    const tip = element("div", "", { class: "tip", role: "status", hidden: "" });
    figure.append(tip);
    const ring = document.createElementNS("http://www.w3.org/2000/svg", boxes ? "rect" : "circle");
    ring.setAttribute("class", "ring");
    let at = -1;

    const find = (x, y) => {
      let best = -1;
      let nearest = 24 * 24;
      for (let each = 0; each < marks.x.length; each += 1) {
        const [dx, dy] = [x - marks.x[each], y - marks.y[each]];
        if (boxes) {
          if (dx >= 0 && dy >= 0 && dx <= marks.width[each] && dy <= marks.height[each]) return each;
        } else if (dx * dx + dy * dy < nearest) {
          nearest = dx * dx + dy * dy;
          best = each;
        }
      }
      return best;
    };
    const say = (found) => {
      at = found;
      tip.hidden = found < 0;
      if (found < 0) {
        ring.remove();
        return;
      }
      tip.textContent = marks.texts[found];
      const [x, y] = [marks.x[found], marks.y[found]];
      const shape = boxes
        ? { x, y, width: marks.width[found], height: marks.height[found] }
        : { cx: x, cy: y, r: 6 };
      Object.entries(shape).forEach(([key, value]) => ring.setAttribute(key, value));
      svg.append(ring);
      const place = svg.getScreenCTM();
      const outer = figure.getBoundingClientRect();
      const left = place.a * (x + (boxes ? marks.width[found] / 2 : 0)) + place.e - outer.left;
      const top = place.d * y + place.f - outer.top;
      tip.style.left = `${Math.max(0, Math.min(left + 12, outer.width - tip.offsetWidth))}px`;
      tip.style.top = `${top > tip.offsetHeight + 16 ? top - tip.offsetHeight - 10 : top + 16}px`;
    };
    drawing.addEventListener("pointermove", (event) => {
      const place = svg.getScreenCTM();
      if (place) say(find((event.clientX - place.e) / place.a, (event.clientY - place.f) / place.d));
    });
    drawing.addEventListener("pointerleave", () => say(-1));
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") say(-1);
      if (!step || !marks.x.length) return;
      event.preventDefault();
      say((at + step + marks.x.length) % marks.x.length);
    });
  });
})();
