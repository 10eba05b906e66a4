// Optional: adds a choice of colours, sorting, filters, and the selection of columns.
"use strict";
(() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const asked = new URLSearchParams(location.search);

  // The selection is stored in the address, so that a view can be shared. If a browser refuses that for local files, it
  // lasts as long as the page.
  function remember(name, values) {
    asked.delete(name);
    for (const value of values) asked.append(name, value);
    const query = asked.toString();
    try {
      history.replaceState(null, "", location.pathname + (query ? "?" + query : "") + location.hash);
    } catch { /* in memory only */ }
  }

  // Colours.
  const THEMES = ["auto", "light", "dark"];
  const theme = $("#theme");
  function colour(name) {
    const known = THEMES.includes(name) ? name : "auto";
    if (known === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = known;
    theme.dataset.now = known;
    $("span", theme).textContent = known[0].toUpperCase() + known.slice(1);
    theme.setAttribute("aria-label", "Colours: " + (known === "auto" ? "system" : known));
    for (const link of $$("a[href]:not([download])")) {
      const href = link.getAttribute("href");
      if (href.startsWith("#") || !/\.html(\?|#|$)/.test(href)) continue;
      const [, path, , hash] = /^([^?#]*)(\?[^#]*)?(#.*)?$/.exec(href);
      link.setAttribute("href", path + (known === "auto" ? "" : "?theme=" + known) + (hash || ""));
    }
    document.dispatchEvent(new CustomEvent("theme"));
  }
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme.dataset.now) + 1) % THEMES.length];
    remember("theme", next === "auto" ? [] : [next]);
    colour(next);
  });
  colour(asked.get("theme"));

  const controls = $("#controls");
  if (!controls) return;

  // The leaderboard.
  const AT_FIRST = 200; // rows of a table until all are asked for
  const find = $("#find"), reset = $("#reset"), shown = $("#shown");
  const menus = Object.fromEntries($$(".menu").map((menu) => [menu.dataset.menu, menu]));
  const boxes = (name) => (menus[name] ? $$("input", menus[name]) : []);
  const sections = $$("section.model").map((section) => ({
    section,
    heads: $$(".board thead th", section),
    body: $(".board .rows", section),
    rows: $$(".board .rows > tr", section),
    failures: $$(".failures tbody > tr", section),
    more: $(".more", section),
    all: false, // whether all rows are shown that pass
    order: [], // the rows as they stand
  }));
  let sort = asked.get("sort") || "";

  const chosen = (name) => {
    const all = boxes(name);
    return all.every((box) => box.checked) ? null : new Set(all.filter((box) => box.checked).map((box) => box.value));
  };

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const method = chosen("method"), setting = chosen("setting"), mode = chosen("mode"), role = chosen("role"), model = chosen("model");
    const passes = (row) =>
      (!method || method.has(row.dataset.method)) &&
      (!setting || !row.dataset.setting || setting.has(row.dataset.setting)) &&
      (!mode || !row.dataset.mode || mode.has(row.dataset.mode)) &&
      (!role || row.dataset.roles.split("\n").some((name) => role.has(name))) &&
      words.every((word) => (row.words ??= row.textContent.toLowerCase()).includes(word));
    let count = 0, total = 0;
    for (const table of sections) {
      const visible = !model || model.has(table.section.dataset.model);
      table.section.hidden = !visible;
      let passed = 0;
      for (const row of table.order) {
        const passing = passes(row);
        passed += passing;
        row.hidden = !passing || (!table.all && passed > AT_FIRST);
      }
      for (const row of table.failures) row.hidden = !passes(row);
      table.more.hidden = table.all || passed <= AT_FIRST;
      $("button", table.more).textContent = `Show all ${passed.toLocaleString("en")} rows`;
      total += table.rows.length;
      count += visible ? passed : 0;
    }
    shown.textContent = count === total ? "" : `${count.toLocaleString("en")} of ${total.toLocaleString("en")} rows`;
  }

  function columns() {
    const on = new Map([...boxes("task"), ...boxes("columns")].map((box) => [box.value, box.checked]));
    for (const { section, heads } of sections)
      heads.forEach((head, place) => {
        const hidden = on.has(head.dataset.c) ? !on.get(head.dataset.c) : false;
        if (head.hidden !== hidden) for (const row of $$(".board tr", section)) row.cells[place].hidden = hidden;
      });
    measure();
  }

  const key = (row, place) => {
    if (!place) return row.dataset.method.toLowerCase();
    const cell = row.cells[place];
    return cell.dataset.v ?? cell.textContent.trim();
  };

  function order() {
    const down = sort.startsWith("-"), name = down ? sort.slice(1) : sort;
    for (const table of sections) {
      const at = table.heads.findIndex((head) => head.dataset.c === name);
      const head = table.heads[at];
      for (const other of table.heads) other.removeAttribute("aria-sort");
      let rows = table.rows;
      if (head) {
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const text = !at || head.classList.contains("text");
        const keyed = rows.map((row, place) => {
          const value = key(row, at);
          return { row, place, value: text ? value : parseFloat(value), missing: value === "" || value === "—" };
        });
        const sign = down ? -1 : 1;
        keyed.sort((a, b) =>
          a.missing - b.missing || (a.missing ? 0 : sign * ((a.value > b.value) - (a.value < b.value))) || a.place - b.place);
        rows = keyed.map((entry) => entry.row);
      }
      if (head || table.sorted) for (const row of rows) table.body.append(row);
      table.sorted = Boolean(head);
      table.order = rows;
      for (const row of rows) row.classList.toggle("opens", !head && row.dataset.opens === "1");
    }
  }

  // Places the pinned row right below the header, whatever its height.
  function measure() {
    for (const { heads } of sections) {
      const table = heads[0].closest("table");
      table.style.setProperty("--header", "0px");
      const height = heads[0].parentElement.getBoundingClientRect().height;
      if (height) table.style.setProperty("--header", `${height}px`);
      else table.style.removeProperty("--header");
    }
  }

  function changed() {
    let any = Boolean(find.value || sort);
    for (const [name, menu] of Object.entries(menus)) {
      const turned = boxes(name).filter((box) => box.checked !== box.defaultChecked);
      remember(name, turned.map((box) => box.value));
      $(".count", menu).textContent = name === "columns" || !turned.length ? "" : `${boxes(name).filter((box) => box.checked).length}`;
      any ||= turned.length > 0;
    }
    remember("q", find.value ? [find.value] : []);
    remember("sort", sort ? [sort] : []);
    reset.hidden = !any;
    filter();
  }

  for (const { heads, rows } of sections) {
    for (const row of rows) row.dataset.opens = row.classList.contains("opens") ? "1" : "";
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      const first = head.classList.contains("share") || head.classList.contains("ratio") ? "-" : "";
      const other = first ? "" : "-";
      const name = head.dataset.c;
      button.addEventListener("click", () => {
        sort = sort === first + name ? other + name : sort === other + name ? "" : first + name;
        order();
        changed();
      });
    }
  }
  for (const table of sections)
    $("button", table.more).addEventListener("click", () => { table.all = true; filter(); });
  find.addEventListener("input", changed);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", () => { columns(); changed(); });
  reset.addEventListener("click", () => {
    for (const name of Object.keys(menus)) for (const box of boxes(name)) box.checked = box.defaultChecked;
    find.value = sort = "";
    columns();
    order();
    changed();
    find.focus();
  });
  for (const menu of Object.values(menus)) {
    for (const button of $$("button[data-all]", menu))
      button.addEventListener("click", () => {
        for (const box of $$("input", menu)) box.checked = Boolean(button.dataset.all);
        columns();
        changed();
      });
    menu.addEventListener("toggle", () => {
      if (menu.open) for (const other of Object.values(menus)) if (other !== menu) other.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      $("summary", menu).focus();
    });
  }
  document.addEventListener("click", (event) => {
    for (const menu of Object.values(menus)) if (!menu.contains(event.target)) menu.open = false;
  });
  for (const folded of $$("section.choice > details")) folded.addEventListener("toggle", measure);
  addEventListener("resize", measure);
  addEventListener("beforeprint", () => { for (const table of sections) table.all = true; filter(); });

  find.value = asked.get("q") || "";
  for (const name of Object.keys(menus)) {
    const turned = new Set(asked.getAll(name));
    for (const box of boxes(name)) box.checked = box.defaultChecked !== turned.has(box.value);
  }
  controls.hidden = false;
  columns();
  order();
  changed();
})();
