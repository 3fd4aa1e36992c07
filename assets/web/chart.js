/* The chart component: one node per chart, Plotly.react on it, at most one draw per animation frame.
 *
 * A payload is a JSON string {v, key, figure: {data, layout}, summary}. It is always complete, so that a dropped one is
 * harmless; an older version than the last one seen is ignored. `key` names what is shown: while it stays the same, zoom
 * is kept. Theme, size and the cursor at the shared step are followed here, without the server.
 */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountChart) return;
  fwviz.charts = {};
  let mounts = 0;

  const config = {
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    responsive: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "toImage", "autoScale2d"],
    scrollZoom: false,
    doubleClick: "reset",
  };

  // Plotly is large: it is fetched once, when the first chart is mounted, and the page does not wait for it.
  let loading = null;
  const plotly = () =>
    (loading ||= new Promise((resolve, reject) => {
      if (window.Plotly) return resolve(window.Plotly);
      const script = document.createElement("script");
      script.src = document.querySelector("meta[name=fw-plotly]")?.content || "fwviz/plotly.min.js";
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error("plotly.js could not be loaded"));
      document.head.append(script);
    }));

  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

  // Figures come in the light palette. Each of its colours has one counterpart in the dark one, wherever it stands in
  // the figure (lines, labels, colour scales), so a figure turns dark by replacing text.
  const pairs = Object.entries(fwviz.parse(document.querySelector("meta[name=fw-palette]")?.content, {}));
  const dark = new Map(pairs);
  const anyColour = pairs.length ? new RegExp(pairs.map(([light]) => light.replace(/[()]/g, "\\$&")).join("|"), "gi") : null;
  const inTheme = (figure) =>
    fwviz.theme() === "dark" && anyColour ? JSON.parse(JSON.stringify(figure).replace(anyColour, (found) => dark.get(found.toLowerCase()))) : figure;

  function themed(layout) {
    const family = css("--font");
    const soft = css("--fw-ink-soft");
    return {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { ...layout.font, family },
      hoverlabel: { ...layout.hoverlabel, font: { ...layout.hoverlabel?.font, family } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: css("--fw-accent") },
    };
  }

  fwviz.mountChart = (element, props, trigger, watch, server) => {
    const card = element.querySelector(".fw-card");
    const name = card.dataset.chart;
    const plot = element.querySelector(".fw-plot");
    const message = element.querySelector(".fw-empty");
    const tableBox = element.querySelector(".fw-table");
    const tableButton = element.querySelector("[data-act=table]");
    const state = { mount: ++mounts, received: 0, drawn: 0, milliseconds: 0, payload: null, ready: false };
    fwviz.charts[name] = state;
    card.dataset.mount = state.mount;
    let waiting = false;
    let dirty = false;
    let cursor = fwviz.cursor ?? null;
    const line = fwviz.el("div", { class: "fw-cursor", hidden: true });

    const visible = () => plot.isConnected && plot.offsetWidth > 0;

    state.push = (payload) => {
      if (!payload || (state.payload && payload.v <= state.payload.v)) return;
      state.payload = payload;
      state.received += 1;
      ask();
    };
    const take = () => state.push(fwviz.parse(props.value, null));

    function ask() {
      dirty = true;
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(draw);
    }

    async function draw() {
      waiting = false;
      if (!dirty || !state.payload || !visible()) return; // hidden: the observer asks again when it is shown
      dirty = false;
      const { summary, key, note } = state.payload;
      const figure = state.payload.figure && inTheme(state.payload.figure);
      message.hidden = Boolean(figure) || !note;
      message.textContent = figure ? "" : note || "";
      plot.classList.toggle("bare", !figure);
      plot.setAttribute("aria-label", summary || note || "");
      card.classList.remove("loading");
      if (!figure) {
        if (state.ready) window.Plotly.purge(plot);
        state.ready = false;
        plot.style.height = "";
        tableBox.replaceChildren();
        line.hidden = true;
        return;
      }
      let Plotly;
      try {
        Plotly = await plotly();
      } catch (error) {
        message.hidden = false;
        message.textContent = "The drawing library could not be loaded: reload the page.";
        return;
      }
      const start = performance.now();
      const layout = themed(figure.layout || {});
      const height = layout.height || 340;
      delete layout.width;
      layout.height = height;
      layout.uirevision = `${key} ${layout.uirevision ?? ""}`;
      plot.style.height = height + "px";
      await Plotly.react(plot, figure.data, layout, config);
      if (!state.ready) {
        state.ready = true;
        plot.on("plotly_click", click);
        plot.on("plotly_afterplot", place);
        plot.on("plotly_relayout", place);
        plot.append(line);
      } else if (!line.isConnected) plot.append(line);
      state.drawn += 1;
      state.milliseconds += performance.now() - start;
      place();
      if (tableButton.getAttribute("aria-pressed") === "true") fillTable();
      if (dirty) ask();
    }

    function click(event) {
      const point = event.points?.[0];
      if (!point) return;
      const plain = (value) => (typeof value === "number" || typeof value === "string" ? value : null);
      const custom = Array.isArray(point.customdata) ? point.customdata.map(plain) : plain(point.customdata);
      const select = plain(point.data?.meta?.select) ?? plain(point.fullData?.meta?.select);
      trigger("pin", { chart: name, select, x: plain(point.x), y: plain(point.y), trace: plain(point.data?.name), custom });
    }

    // The cursor is a thin element over the plot: moving it costs no redraw.
    function place() {
      const layout = plot._fullLayout;
      const axis = layout?.xaxis;
      const x = cursor?.x;
      const on = state.ready && state.payload?.cursor && axis && Number.isFinite(x);
      line.hidden = !on;
      if (!on) return;
      const at = axis._offset + axis.d2p(x);
      line.hidden = at < axis._offset - 1 || at > axis._offset + axis._length + 1;
      line.style.transform = "translateX(" + at.toFixed(1) + "px)";
      line.style.top = layout._size.t + "px";
      line.style.height = layout._size.h + "px";
    }

    // --- data table: the tidy table the server drew this figure from ----------------------------------
    async function rows() {
      const found = fwviz.parse(await server.rows(state.payload?.ask || ""), null);
      return found?.columns ? found : { columns: [], rows: [] };
    }

    const show = (value) => {
      if (typeof value !== "number") return value === null || value === undefined ? "" : String(value).replace(/<[^>]*>/g, " ");
      return Number.isInteger(value) ? String(value) : Number(value.toPrecision(5)).toString();
    };

    async function fillTable() {
      const asked = state.payload.v;
      const { columns, rows: all } = await rows();
      if (asked !== state.payload.v && state.filled) return; // a newer picture is on its way, and so is its table
      state.filled = asked;
      const shown = all.slice(0, 400);
      const table = fwviz.el("table", {}, fwviz.el("thead", {}, fwviz.el("tr", {}, ...columns.map((c) => fwviz.el("th", { scope: "col" }, c)))));
      const body = fwviz.el("tbody");
      for (const row of shown) {
        body.append(fwviz.el("tr", {}, ...row.map((cell) => fwviz.el("td", { class: typeof cell === "number" ? "num" : null }, show(cell)))));
      }
      table.append(body);
      const more = all.length > shown.length ? fwviz.el("p", {}, `${shown.length} of ${all.length} rows shown: the CSV file has all.`) : null;
      tableBox.replaceChildren(table, ...(more ? [more] : []));
    }

    // --- files -------------------------------------------------------------------------------------
    const save = (text, type, ending) => {
      const url = URL.createObjectURL(new Blob([text], { type }));
      const link = fwviz.el("a", { href: url, download: `fwviz-${name}.${ending}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    };
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      let text = String(value);
      if (typeof value === "string" && /^[=+@\t\r-]/.test(text)) text = "'" + text; // a spreadsheet would run it
      return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    const image = async (format) => {
      const background = css("--fw-card") || "white"; // the ink of the page's theme needs its paper
      const url = await window.Plotly.toImage(
        { data: plot.data, layout: { ...plot.layout, paper_bgcolor: background, width: Math.max(plot.offsetWidth, 640) }, config },
        { format, scale: 2 },
      );
      fwviz.el("a", { href: url, download: `fwviz-${name}.${format}` }).click();
    };
    const page = async () => {
      const script = await (await fetch(document.querySelector("script[src*='plotly.min.js']").src)).text();
      const title = card.querySelector("h3").textContent;
      const safe = (value) => JSON.stringify(value).replaceAll("<", "\\u003c");
      const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
      const layout = { ...plot.layout, paper_bgcolor: css("--fw-card"), plot_bgcolor: css("--fw-card") };
      save(
        `<!doctype html><html lang="en"><meta charset="utf-8"><title>${escape(title)}</title>` +
          `<body style="margin:1.5rem;font-family:system-ui,sans-serif;background:${css("--fw-card")};color:${css("--fw-ink")}">` +
          `<h1 style="font-size:1.2rem">${escape(title)}</h1><p>${escape(card.querySelector(".fw-reading").textContent)}</p><div id="plot"></div>` +
          `<script>${script.replaceAll("</script", "<\\/script")}</scr` +
          `ipt><script>Plotly.newPlot("plot", ${safe(plot.data)}, ${safe(layout)}, {displaylogo: false, showSendToCloud: false, responsive: true})</scr` +
          `ipt></body></html>`,
        "text/html",
        "html",
      );
    };

    card.addEventListener("click", async (event) => {
      const button = event.target.closest("button[data-act]");
      if (!button) return;
      const act = button.dataset.act;
      const menu = button.closest("details");
      if (menu) menu.open = false;
      if (act === "measure") return trigger("pin", { chart: name, action: "measure" });
      if (act === "table") {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        tableBox.hidden = !on;
        if (on && state.ready) fillTable();
        return;
      }
      if (!state.ready) return fwviz.say("There is nothing to save in this chart yet.");
      if (act === "csv") {
        const { columns, rows: all } = await rows();
        save([columns, ...all].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n", "text/csv", "csv");
      } else if (act === "html") page();
      else image(act);
    });

    new ResizeObserver(() => {
      if (!visible()) return;
      if (dirty) ask();
      else if (state.ready && Math.abs(plot._fullLayout.width - plot.clientWidth) > 1) requestAnimationFrame(() => visible() && window.Plotly.Plots.resize(plot));
    }).observe(plot);
    fwviz.on("theme", () => state.payload && ask());
    fwviz.on("cursor", (where) => {
      cursor = where;
      place();
    });
    watch("value", take);
    take();
  };
})();
