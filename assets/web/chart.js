/* The chart component: one node per chart, Plotly.react on it, at most one draw per animation frame.
 *
 * A payload is a JSON string {v, key, figure: {data, layout}, summary, …}, or while data arrive {v, since, d}: what has
 * changed since the version that lies so far back. If that one was dropped on the way, the whole figure is asked for; an
 * older version than the last one seen is ignored. `key` names what is shown: while it stays the same, zoom is kept.
 * Theme, size, the cursor at the shared step, previews and pins are followed here, without the server.
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
    // Where nothing hovers plotly shows it always, and on a phone it lies over the words above the plot.
    displayModeBar: matchMedia("(hover: none) and (max-width: 700px)").matches ? false : "hover",
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

    const bar = element.querySelector(".fw-progress");
    const action = element.querySelector(".fw-act");
    const send = fwviz.latest(trigger);
    let asked = 0; // the version for which the whole figure was asked

    state.push = (payload) => {
      if (!payload || (state.payload && payload.v <= state.payload.v)) return;
      if (payload.d) {
        const base = payload.v - payload.since;
        if (state.payload?.v !== base) {
          if (asked < base) send("pin", { chart: name, action: "whole" });
          asked = base;
          return;
        }
        payload = { ...fwviz.patched(state.payload, payload.d), v: payload.v };
        state.patched = (state.patched || 0) + 1;
      }
      state.payload = payload;
      state.received += 1;
      state.bytes = (props.value || "").length;
      job(payload.job);
      ask();
    };

    // Where a measurement stands: its button stops it while it is under way.
    function job(facts) {
      const on = facts?.state === "running" || facts?.state === "waiting";
      if (action && facts) {
        action.dataset.act = on ? "stop" : "measure";
        action.textContent = on ? "Stop" : facts.state === "done" ? "Measured" : facts.state === "stopped" ? "Measure again" : action.dataset.label;
        action.disabled = facts.state === "done";
      }
      if (!bar) return;
      bar.hidden = !facts || facts.state === "idle" || facts.state === "done";
      if (bar.hidden) return;
      bar.querySelector("i").style.width = `${100 * (facts.progress || 0)}%`;
      bar.setAttribute("aria-valuenow", Math.round(100 * (facts.progress || 0)));
      bar.querySelector("span").textContent = facts.state === "waiting" ? "waiting for a free place" : facts.said || "";
    }
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
      state.named = null;
      const figure = state.payload.figure && inTheme(fwviz.filled(state.payload.figure));
      message.hidden = Boolean(figure) || !note;
      message.textContent = figure ? "" : note || "";
      plot.classList.toggle("bare", !figure);
      plot.setAttribute("aria-label", summary || note || "");
      card.classList.remove("loading");
      if (!figure) {
        if (state.ready) window.Plotly.purge(plot);
        state.ready = false;
        marks.replaceChildren();
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
        plot.on("plotly_hover", (event) => fwviz.emit("hover", { from: name, keys: keysOf(event.points?.[0]) }));
        plot.on("plotly_unhover", () => fwviz.emit("hover", { from: name, keys: {} }));
        plot.on("plotly_afterplot", place);
        plot.on("plotly_relayout", place);
        plot.append(line, marks);
      } else if (!line.isConnected) plot.append(line, marks);
      // The picture is an image with words; the buttons that Plotly puts beside it are not part of it.
      plot.querySelectorAll("svg.main-svg").forEach((svg, i) => {
        if (i) return svg.setAttribute("aria-hidden", "true");
        svg.setAttribute("role", "img");
        svg.setAttribute("aria-label", summary || "");
      });
      state.drawn += 1;
      state.milliseconds += performance.now() - start;
      place();
      if (tableButton.getAttribute("aria-pressed") === "true") fillTable();
      if (dirty) ask();
    }

    // --- what a point stands for: charts/_style.py names() says it in the trace's meta -----------------
    const plain = (value) => (typeof value === "number" || typeof value === "string" ? value : null);

    function keysOf(point) {
      const meta = point?.data?.meta || point?.fullData?.meta;
      if (!meta) return {};
      const keys = { ...meta.of };
      const [row, column] = Array.isArray(point.pointIndex ?? point.pointNumber) ? (point.pointIndex ?? point.pointNumber) : [];
      for (const [ids, at] of [[meta.rows, row], [meta.columns, column]]) {
        for (const [key, list] of Object.entries(ids || {})) if (at !== undefined) keys[key] = list[at];
      }
      const names = meta.keys || (meta.select && meta.select !== "cell" && !(meta.select in keys) ? [meta.select] : []);
      const custom = Array.isArray(point.customdata) ? point.customdata : [point.customdata];
      names.forEach((key, i) => plain(custom[i]) !== null && (keys[key] = custom[i]));
      if (meta.select === "t" && keys.t === undefined) keys.t = plain(point.x);
      return keys;
    }

    function click(event) {
      const point = event.points?.[0];
      const select = point?.data?.meta?.select ?? point?.fullData?.meta?.select;
      if (!select) return;
      const keys = keysOf(point);
      if (select === "t") return send("pin", { chart: name, t: keys.t });
      const wanted = select === "cell" ? ["checkpoint", "layer"] : [select];
      const pins = Object.fromEntries(wanted.filter((key) => keys[key] && key in fwviz.pins).map((key) => [key, keys[key]]));
      if (Object.keys(pins).length) fwviz.pin(pins, (data) => send("pin", { chart: name, ...data }));
      fwviz.emit("picked", { chart: name, select, keys, value: plain(point.z) ?? plain(point.x) });
    }

    // --- marks: thin elements over the plot for what is previewed or pinned; nothing is drawn anew -------
    const marks = fwviz.el("div", { class: "fw-marks", "aria-hidden": "true" });
    let hovered = {};

    // Every named part of the figure, once per figure: key → id → places.
    function parts() {
      if (state.named) return state.named;
      const named = { checkpoint: new Map(), layer: new Map() };
      const add = (key, id, place) => {
        if (!(key in named) || id === null || id === undefined) return;
        if (!named[key].has(id)) named[key].set(id, []);
        named[key].get(id).push(place);
      };
      (plot._fullData || []).forEach((trace, n) => {
        const meta = trace.meta;
        if (!meta) return;
        for (const [key, id] of Object.entries(meta.of || {})) add(key, id, { kind: "trace", n });
        for (const [key, ids] of Object.entries(meta.rows || {})) ids.forEach((id, i) => add(key, id, { kind: "row", n, i }));
        for (const [key, ids] of Object.entries(meta.columns || {})) ids.forEach((id, i) => add(key, id, { kind: "column", n, i }));
        const names = meta.keys || (meta.select in named ? [meta.select] : []);
        if (!names.length || meta.of || !trace.customdata || trace.customdata.length > 4000) return;
        for (let i = 0; i < trace.customdata.length; i++) {
          const custom = Array.isArray(trace.customdata[i]) ? trace.customdata[i] : [trace.customdata[i]];
          names.forEach((key, k) => add(key, custom[k], { kind: trace.type === "bar" ? "bar" : "point", n, i }));
        }
      });
      return (state.named = named);
    }

    const pixel = (axis, value) => axis._offset + axis.l2p(axis.d2l(value));
    const half = (axis, list, i) => {
      const here = axis.l2p(axis.d2l(list[i]));
      const beside = list.length > 1 ? axis.l2p(axis.d2l(list[i > 0 ? i - 1 : 1])) : here + 20;
      return Math.abs(beside - here) / 2;
    };

    function box(place) {
      const layout = plot._fullLayout;
      const trace = plot._fullData[place.n];
      if (trace.visible !== true || !trace.xaxis || !trace.yaxis) return null;
      const x = layout["xaxis" + trace.xaxis.slice(1)];
      const y = layout["yaxis" + trace.yaxis.slice(1)];
      if (!x || !y) return null;
      const across = { left: x._offset, width: x._length };
      const along = { top: y._offset, height: y._length };
      const clip = (b) => {
        const left = Math.max(b.left, x._offset - 2), top = Math.max(b.top, y._offset - 2);
        const right = Math.min(b.left + b.width, x._offset + x._length + 2), bottom = Math.min(b.top + b.height, y._offset + y._length + 2);
        return right - left > 1 && bottom - top > 1 ? { ...b, left, top, width: right - left, height: bottom - top } : null;
      };
      if (place.kind === "row") {
        const h = half(y, trace.y, place.i);
        return clip({ ...across, top: pixel(y, trace.y[place.i]) - h, height: 2 * h });
      }
      if (place.kind === "column") {
        const w = half(x, trace.x, place.i);
        return clip({ ...along, left: pixel(x, trace.x[place.i]) - w, width: 2 * w });
      }
      if (place.kind === "bar") {
        const flat = trace.orientation === "h";
        const axis = flat ? y : x;
        const at = pixel(axis, (flat ? trace.y : trace.x)[place.i]);
        const w = Math.max(Math.abs(axis.l2p(1) - axis.l2p(0)) / 2 || 9, 5);
        return clip(flat ? { ...across, top: at - w, height: 2 * w } : { ...along, left: at - w, width: 2 * w });
      }
      const left = pixel(x, trace.x[place.i]), top = pixel(y, trace.y[place.i]);
      if (!Number.isFinite(left) || !Number.isFinite(top)) return null;
      return clip({ left: left - 8, top: top - 8, width: 16, height: 16, round: true });
    }

    // Lines and violins that stand for a checkpoint or layer as a whole: the others step back.
    function fade(named, wanted) {
      const groups = new Map();
      for (const key of Object.keys(named)) for (const [id, places] of named[key]) for (const place of places) if (place.kind === "trace") groups.set(place.n, (groups.get(place.n) || !wanted.length) || wanted.some(([k, i]) => k === key && i === id));
      if (!groups.size) return;
      const any = [...groups.values()].some(Boolean);
      for (const [n, on] of groups) {
        const node = plot.querySelector(`.trace${CSS.escape(plot._fullData[n].uid)}`);
        if (node) {
          node.style.opacity = on || !any ? "" : "0.22";
          node.classList.toggle("fw-on", on && wanted.length > 0);
        }
      }
    }

    function mark() {
      if (!state.ready) return;
      if (!visible()) return marks.replaceChildren(); // the observer marks it when it is shown
      const start = performance.now();
      const named = parts();
      const pinned = Object.entries(fwviz.pins || {}).filter(([, id]) => id);
      const previewed = Object.entries(hovered).filter(([key, id]) => key in named && id && fwviz.pins[key] !== id);
      const boxes = [];
      for (const [list, how] of [[pinned, "pinned"], [previewed, "preview"]]) {
        for (const [key, id] of list) {
          // Neighbouring columns or rows are marked as one, and a row once, whatever stands in it.
          const spots = [];
          for (const place of named[key]?.get(id) || []) {
            if (spots.length > 400) break;
            const found = place.kind === "trace" ? null : box(place);
            if (!found) continue;
            const near = (a, b) => Math.abs(a - b) < 1.5;
            const touching = spots.findLast((b) => !b.round && !found.round && ((near(b.top, found.top) && near(b.height, found.height) && found.left <= b.left + b.width + 1.5 && found.left >= b.left - 1) || (near(b.left, found.left) && near(b.width, found.width) && found.top <= b.top + b.height + 1.5 && found.top >= b.top - 1)));
            if (touching) {
              touching.width = Math.max(touching.width, found.left + found.width - touching.left);
              touching.height = Math.max(touching.height, found.top + found.height - touching.top);
            } else spots.push(found);
          }
          for (const found of spots) {
            const node = fwviz.el("i", { class: `${how}${found.round ? " round" : ""}` });
            for (const side of ["left", "top", "width", "height"]) node.style[side] = found[side].toFixed(1) + "px";
            boxes.push(node);
          }
        }
      }
      marks.replaceChildren(...boxes);
      fade(named, [...pinned, ...previewed]);
      state.marked = boxes.length;
      state.marking = performance.now() - start;
    }

    // The cursor is a thin element over the plot: moving it costs no redraw.
    function place() {
      mark();
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
      const wanted = state.payload.v;
      const { columns, rows: all } = await rows();
      if (wanted !== state.payload.v && state.filled) return; // a newer picture is on its way, and so is its table
      state.filled = wanted;
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
      if (act === "measure" || act === "stop") return send("pin", { chart: name, action: act });
      if (act === "cli") {
        const line = fwviz.parse(await server.rows(state.payload?.ask || ""), null)?.cli;
        return fwviz.say(line && (await fwviz.copy(line)) ? "Command copied: it makes this figure without a browser." : "There is no command for this chart yet.");
      }
      if (act === "recipe") {
        const view = (fwviz.parse(state.payload?.ask, []) || [])[1];
        return view ? fwviz.el("a", { href: `fwviz/export/${encodeURIComponent(view)}/recipe`, download: "" }).click() : fwviz.say("There is no recipe behind this chart yet.");
      }
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
      mark();
      if (dirty) ask();
      else if (state.ready && Math.abs(plot._fullLayout.width - plot.clientWidth) > 1) requestAnimationFrame(() => visible() && window.Plotly.Plots.resize(plot));
    }).observe(plot);
    fwviz.on("theme", () => state.payload && ask());
    fwviz.on("pins", mark);
    fwviz.on("hover", ({ keys }) => {
      hovered = keys;
      mark();
    });
    fwviz.on("cursor", (where) => {
      cursor = where;
      place();
    });
    watch("value", take);
    take();
  };
})();
