"use strict";
// Draws the graphs in the reader's colours and width, sorts tables, switches figures, copies texts.
(() => {
  const NARROW = 480;
  const root = document.documentElement;
  const graphs = [...document.querySelectorAll(".graph")];
  const theme = JSON.parse(document.getElementById("theme").textContent);
  const darkQuery = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  let printing = false;
  let turn = 0;

  // Figures are made in the light edition of the colours; six digits also match with an opacity behind them.
  function inColours(text, dark) {
    return dark ? text.replace(/#[0-9a-f]{6}/g, (colour) => theme.dark[colour] || colour) : text;
  }

  function set(target, path, value) {
    const keys = path.split(".");
    const last = keys.pop();
    for (const key of keys) target = target[key] ??= {};
    target[last] = value;
  }

  function draw(graph) {
    const width = graph.clientWidth;
    if (!width) return;
    const dark = darkQuery.matches && !printing;
    const state = `${width} ${dark}`;
    if (graph.dataset.state === state) return;
    const spec = JSON.parse(inColours(graph.parentElement.querySelector("script").textContent, dark));
    spec.layout.template = JSON.parse(inColours(JSON.stringify(theme.template), dark));
    const narrow = width < NARROW;
    if (narrow) for (const [path, value] of Object.entries(spec.narrow)) set(spec.layout, path, value);
    // Plotly breaks no lines: a narrow graph has its x axis's title below it, as text of the page.
    const title = graph.parentElement.querySelector(".axis-title");
    if (title) title.hidden = !narrow;
    if (title && narrow) {
      spec.layout.xaxis.title.text = "";
      spec.layout.height -= spec.layout.margin.b - 24;
      spec.layout.margin.b = 24;
    }
    spec.layout.width = width;
    graph.style.height = `${spec.layout.height}px`;
    if (touch) spec.layout.dragmode = false;
    const small = graph.closest(".grid") !== null;
    const config = {
      displaylogo: false,
      showSendToCloud: false,
      displayModeBar: small || touch ? false : "hover",
      modeBarButtonsToRemove: ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
    };
    Plotly.react(graph, spec.data, spec.layout, config);
    graph.dataset.state = state;
  }

  // In slices, from the top of the page, so that the first screen is there at once and scrolling stays smooth.
  async function drawAll() {
    const mine = ++turn;
    root.dataset.drawn = "false";
    let since = performance.now();
    for (const graph of graphs) {
      draw(graph);
      if (performance.now() - since > 40) {
        await new Promise((resume) => setTimeout(resume));
        if (mine !== turn) return;
        since = performance.now();
      }
    }
    root.dataset.drawn = "true";
  }

  function value(row, column) {
    const text = row.cells[column].dataset.sort;
    if (text === undefined) return null;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  }

  function sort(button) {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const compare = (a, b) => {
      const [x, y] = [value(a, head.cellIndex), value(b, head.cellIndex)];
      // What has no value comes last both ways.
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return ascending ? order : -order;
    };
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...[...body.rows].sort(compare));
    say(`Sorted by ${button.textContent}, ${ascending ? "ascending" : "descending"}.`);
  }

  function choose(input) {
    for (const figure of document.querySelectorAll("figure[data-choice]")) {
      if (figure.dataset.choice === input.name) figure.hidden = figure.dataset.option !== input.value;
    }
    drawAll();
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Without the clipboard's permission: select it, so that the reader's own copy key works.
      getSelection().selectAllChildren(source);
      if (!document.execCommand("copy")) return say("Selected: copy it with your keyboard.");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
    return say("Copied.");
  }

  function say(text) {
    document.getElementById("status").textContent = text;
  }

  function print(on) {
    printing = on;
    root.classList.toggle("print", on);
    for (const input of document.querySelectorAll(".choice input:checked")) {
      for (const figure of document.querySelectorAll("figure[data-choice]")) {
        if (figure.dataset.choice === input.name) figure.hidden = !on && figure.dataset.option !== input.value;
      }
    }
    turn++;
    for (const graph of graphs) draw(graph);
    root.dataset.drawn = "true";
  }

  for (const button of document.querySelectorAll("button.sort")) button.addEventListener("click", () => sort(button));
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copy(button));
  for (const input of document.querySelectorAll(".choice input")) input.addEventListener("change", () => choose(input));
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  darkQuery.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  drawAll();
})();
