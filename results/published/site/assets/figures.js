// Replaces each static chart by an interactive one when it comes into view. Nothing is fetched: the charts are in the
// page, Vega is a local file, and its interpreter needs no eval.
"use strict";
(() => {
  const looks = JSON.parse(document.getElementById("looks").textContent);
  const figures = [...document.querySelectorAll("figure.chart")];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const views = new Map();

  function specification(figure, width) {
    const chart = JSON.parse(figure.querySelector(".specification").textContent);
    if (chart.columns) chart.columns = Math.max(1, Math.min(chart.columns, Math.floor(width / chart.usermeta.panel)));
    const legends = (part) => {
      for (const [name, value] of Object.entries(part || {}))
        if (name === "legend" && value?.columns) {
          const entry = value.labelLimit || 115; // sentences say how long they are, names of methods are short
          value.columns = Math.max(value.labelLimit ? 1 : 2, Math.min(value.columns, Math.floor(width / entry)));
        }
        else if (name !== "data" && typeof value === "object") legends(value);
    };
    legends(chart);
    const inner = chart.spec || chart;
    if (typeof inner.width === "number" && width < chart.usermeta.panel)
      inner.width = Math.max(180, inner.width - (chart.usermeta.panel - width));
    return chart;
  }

  async function draw(figure) {
    const place = figure.querySelector(".live");
    const width = place.parentElement.clientWidth;
    const state = `${dark()} ${width}`;
    if (views.get(figure)?.state === state) return;
    views.get(figure)?.view?.finalize();
    views.set(figure, { state });
    const embedded = await vegaEmbed(place, specification(figure, width), {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, logLevel: 1, defaultStyle: false,
      config: looks[dark() ? "dark" : "light"], tooltip: { disableDefaultStyle: true, theme: "site" },
    });
    views.set(figure, { state, view: embedded.view });
    place.hidden = false;
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { views.has(entry.target) || views.set(entry.target, {}); draw(entry.target); }
  }, { rootMargin: "400px" });
  for (const figure of figures) seen.observe(figure);

  let waiting = 0;
  function again() {
    clearTimeout(waiting);
    waiting = setTimeout(() => { for (const figure of views.keys()) draw(figure); }, 120);
  }
  addEventListener("resize", again);
  system.addEventListener("change", again);
  document.addEventListener("theme", again);
})();
