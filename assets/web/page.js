/* The page's own small pieces: an event bus, the theme, the address bar, the drawer. No framework, no other hosts. */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.page) return;
  fwviz.page = true;

  // --- bus: hover, cursor and theme changes stay in the browser -----------------------------------
  const listeners = {};
  fwviz.on = (name, listener) => {
    (listeners[name] ||= new Set()).add(listener);
    return () => listeners[name].delete(listener);
  };
  fwviz.emit = (name, detail) => {
    for (const listener of listeners[name] || []) listener(detail);
  };

  fwviz.parse = (value, otherwise) => {
    if (typeof value !== "string" || !value) return otherwise;
    try {
      return JSON.parse(value);
    } catch {
      return otherwise;
    }
  };

  // Gradio holds an event back while an earlier one of its kind is being answered, and then sends the data of the
  // earlier one once more. Both are one object here: what is sent then is what was said last.
  fwviz.latest = (send) => {
    const said = {};
    return (name, data) => {
      const one = (said[name] ||= {});
      for (const key of Object.keys(one)) delete one[key];
      send(name, Object.assign(one, data));
    };
  };

  // The difference that fwviz/ui/delta.py makes, applied without touching the old value.
  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  function widened(old, [shape, text]) {
    const rows = parseInt(shape, 10);
    const narrow = bytesOf(old.bdata), more = bytesOf(text);
    const a = narrow.length / rows, b = more.length / rows;
    let made = "";
    for (let i = 0; i < rows; i++) made += String.fromCharCode(...narrow.subarray(i * a, (i + 1) * a), ...more.subarray(i * b, (i + 1) * b));
    return { ...old, shape, bdata: btoa(made) };
  }
  fwviz.patched = (old, difference) => {
    if (difference === null || typeof difference !== "object") return difference;
    if (Array.isArray(difference)) {
      if (difference.length === 1) return difference[0];
      if (difference.length === 2) return widened(old, difference);
      let at = 0;
      const parts = [];
      for (let i = 0; i < difference.length; i += 3) {
        parts.push(old.slice(at, at + difference[i]), difference[i + 2]);
        at += difference[i] + difference[i + 1];
      }
      return parts.join("") + old.slice(at);
    }
    if (!Object.keys(difference).length) return old;
    const made = Array.isArray(old) ? [...old] : { ...old };
    for (const [key, inner] of Object.entries(difference)) {
      if (Array.isArray(old) && key === "+") continue;
      if (Array.isArray(inner) && !inner.length) delete made[key];
      else made[key] = fwviz.patched(made[key], inner);
    }
    const [start, more, again = [], grown = []] = (Array.isArray(old) && difference["+"]) || [];
    if (!more) return made;
    const list = [...made.slice(0, start), ...more, ...again.map((i) => old[i])];
    for (const inner of grown) list.push(fwviz.patched(list.at(-1), inner));
    return list;
  };

  // What fwviz/ui/brief.py leaves out of a figure, filled in again: ranks, entries of another trace, half the digits.
  const half = (bits) => {
    const power = (bits >> 10) & 31, digits = bits & 1023;
    const size = power === 31 ? (digits ? NaN : Infinity) : power ? (1 + digits / 1024) * 2 ** (power - 15) : digits * 2 ** -24;
    return bits >> 15 ? -size : size;
  };
  const TYPED = { f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array };
  const valuesOf = (array) => (array.bdata ? new TYPED[array.dtype](bytesOf(array.bdata).buffer) : array);
  const halvesOf = (text) => Float32Array.from(new Uint16Array(bytesOf(text).buffer), half);
  function single(array, values) {
    const bytes = new Uint8Array(values.slice().buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
    const { part, ...kept } = array;
    return { ...kept, dtype: "f4", bdata: btoa(text) };
  }
  // Three digits with a true minus sign, as the charts write numbers: +0.0123, −1.5, 0, +2·10⁻⁵.
  fwviz.number = (value) => {
    if (!value) return "0";
    const [digits, power] = Math.abs(value).toExponential(2).split("e").map(Number);
    const raised = [...String(power)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
    return (value < 0 ? "−" : "+") + (power < -4 || power > 2 ? `${digits}·10${raised}` : Number(Math.abs(value).toPrecision(3)));
  };
  // A range around bars that moves in steps.
  function reach(values) {
    const low = Math.min(0, ...values), high = Math.max(0, ...values);
    const span = high - low || 1, step = 10 ** Math.floor(Math.log10(span)) / 10;
    return [Math.floor((low - 0.07 * span) / step) * step, Math.ceil((high + 0.07 * span) / step) * step];
  }
  // Numbers beside bars: beyond the tip if there is room, else on the other side of the zero line.
  function beside(values, places) {
    const low = Math.min(0, ...values), high = Math.max(0, ...values);
    const made = { x: [], text: [], textposition: [] };
    for (const i of places) {
      const v = values[i], out = (v < 0 ? v - low : high - v) / (high - low || 1) > 0.25;
      made.x.push(out ? v : 0);
      made.text.push(fwviz.number(v));
      made.textposition.push(v < 0 === out ? "middle left" : "middle right");
    }
    return made;
  }
  // What marks on the cells of a map share with them.
  function cells(marks, map) {
    const { meta } = marks, x = [...valuesOf(marks.x)], z = valuesOf(map.z);
    const columns = [...valuesOf(map.x)], rows = x.map((_, i) => map.y.indexOf(marks.y[i])), at = x.map((value) => columns.indexOf(value));
    const ids = (key, i) => (key in map.meta.rows ? map.meta.rows[key][rows[i]] : map.meta.columns[key][at[i]]);
    marks.text = x.map((_, i) => z[rows[i] * columns.length + at[i]]);
    marks.customdata = x.map((_, i) => (meta.keys ? meta.keys.map((key) => ids(key, i)) : ids(meta.select, i)));
    if (meta.told) marks.hovertext = rows.map((row) => meta.told[row]);
    return rows;
  }
  fwviz.filled = (figure) => {
    const data = [], layout = { ...figure.layout, annotations: [...(figure.layout.annotations || [])] };
    const halves = figure.halves ? halvesOf(figure.halves) : null;
    const numbers = (n) => valuesOf(data[n].x);
    for (const sent of figure.data) {
      const trace = { ...sent }, { meta = {} } = sent, { annotations } = layout;
      data.push(trace);
      for (const name of meta.halved || []) if (trace[name]?.dtype === "f2") trace[name] = single(trace[name], trace[name].part ? halves.slice(...trace[name].part) : halvesOf(trace[name].bdata));
      for (const [name, [from, places]] of Object.entries(meta.picks || {})) {
        const tips = numbers(from);
        trace[name] = places.map((i) => tips[i]);
      }
      if (meta.like !== undefined) trace.x = data[meta.like].x;
      if (meta.beside) Object.assign(trace, beside(numbers(meta.beside[0]), meta.beside[1]));
      if (meta.reach) layout[meta.reach] = { ...layout[meta.reach], range: reach(numbers(data.length - 1)) };
      if (meta.columns) {
        const columns = Object.entries(meta.columns).map(([key, ids]) => [key, ids === "x" ? [...valuesOf(trace.x)] : ids]);
        trace.meta = { ...meta, columns: Object.fromEntries(columns) };
      }
      if (meta.cells !== undefined) {
        const rows = cells(trace, data[meta.cells]), [note] = annotations.splice(meta.tally);
        for (let y = 0; y < data[meta.cells].y.length; y++) {
          const count = rows.filter((row) => row === y).length;
          annotations.push({ ...note, y, text: count ? `${count}×` : "" });
        }
      }
      if (meta.last !== undefined) {
        const [x, y] = [trace.x, trace.y].map((array) => valuesOf(array).at(-1));
        annotations[meta.last] = { ...annotations[meta.last], x, y, text: fwviz.number(y).replace("+", "") };
      }
      for (const [name, either] of Object.entries(meta.signs || {})) {
        const values = numbers(data.length - 1);
        trace[name] = trace[name].map((text, i) => text.replace("\ue000", either[values[i] < 0 ? 0 : 1]));
      }
      if (!meta.ranks) continue;
      const values = numbers(data.length - 1);
      trace[meta.ranks] = Array(values.length);
      [...values.keys()].sort((a, b) => values[a] - values[b] || a - b).forEach((place, i) => (trace[meta.ranks][place] = i + 1));
    }
    return { ...figure, data, layout };
  };

  // Text from the server is only ever inserted as text.
  fwviz.el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };

  // --- theme -------------------------------------------------------------------------------------
  const asked = new URLSearchParams(location.search).get("__theme");
  const remembered = (() => {
    try {
      return localStorage.getItem("fwviz.theme");
    } catch {
      return null;
    }
  })();
  fwviz.theme = () => (document.body.classList.contains("dark") ? "dark" : "light");
  fwviz.setTheme = (name) => {
    document.body.classList.toggle("dark", name === "dark");
    document.documentElement.classList.toggle("dark", name === "dark");
    try {
      localStorage.setItem("fwviz.theme", name);
    } catch {
      /* a private window may forbid storage: the choice then lasts for this page only */
    }
  };
  if (!asked && (remembered === "dark" || remembered === "light")) fwviz.setTheme(remembered);
  let seen = fwviz.theme();
  new MutationObserver(() => {
    if (fwviz.theme() === seen) return;
    seen = fwviz.theme();
    fwviz.emit("theme", seen);
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  // --- address bar: the whole state, so that a link is the session --------------------------------
  fwviz.query = () => new URLSearchParams(location.search);
  fwviz.setQuery = (changes) => {
    const query = fwviz.query();
    for (const [name, value] of Object.entries(changes)) {
      if (value === null || value === undefined || value === "") query.delete(name);
      else query.set(name, value);
    }
    const text = query.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
    const next = location.pathname + (text ? "?" + text : "") + location.hash;
    if (next !== location.pathname + location.search + location.hash) history.replaceState(history.state, "", next);
  };
  // A recipe arrives as a whole query: its parameters replace those of the recipe before it, the others stay.
  fwviz.setRecipeQuery = (text) => {
    const changes = {};
    for (const name of fwviz.query().keys()) {
      if (/^(pool|method|tasks|checkpoints|seed|device|dtype|storage|precision|set\..*)$/.test(name)) changes[name] = null;
    }
    for (const [name, value] of new URLSearchParams(text)) changes[name] = value;
    fwviz.setQuery(changes);
  };

  // gradio tells of the first tab that shows, too: until the tab of the link is open, only a person's choice counts.
  const FIRST_TAB = "relevance";
  let wantedTab = fwviz.query().get("tab");
  const byHand = (event) => event.target.closest?.("#fw-tabs > .tab-wrapper") && (wantedTab = null);
  for (const gesture of ["pointerdown", "keydown", "click"]) document.addEventListener(gesture, byHand, true);
  fwviz.chosenTab = (name) => {
    if (wantedTab && wantedTab !== name) return;
    wantedTab = null;
    fwviz.setQuery({ tab: name === FIRST_TAB ? null : name });
    fwviz.tellTab?.(name);
  };

  // --- for teachers: embed=1 shows the charts of the tab alone, hide= leaves parts of the page out ------
  const PARTS = ["header", "sidebar", "runbar", "scrubber", "pins", "tabs", "lead", "controls", "tiles", "readings", "tools", "export", "history"];
  const hidden = new Set((fwviz.query().get("hide") || "").split(",").filter((part) => PARTS.includes(part)));
  if (fwviz.query().get("embed") === "1") for (const part of PARTS) if (!["readings", "tools"].includes(part)) hidden.add(part);
  for (const part of hidden) document.body.classList.add(`fw-no-${part}`);

  // --- drawer (the sidebar at phone width) --------------------------------------------------------
  fwviz.drawer = (open) => {
    document.body.classList.toggle("fw-drawer-open", open);
    for (const button of document.querySelectorAll("[data-fw-drawer]")) button.setAttribute("aria-expanded", String(open));
    if (open) document.querySelector("#fw-form input, #fw-form select, #fw-form button")?.focus({ preventScroll: true });
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("fw-drawer-open")) fwviz.drawer(false);
  });

  fwviz.mountHeader = (element) => {
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.act === "theme") fwviz.setTheme(fwviz.theme() === "dark" ? "light" : "dark");
      if (button.dataset.act === "drawer") fwviz.drawer(!document.body.classList.contains("fw-drawer-open"));
      if (button.dataset.act === "link") {
        const done = await fwviz.copy(location.href);
        fwviz.say(done ? "Link copied: it holds the pool, the recipe, the run, the step, the tab, its controls and what is marked." : "Copy the address of this page: it is the link.");
      }
    });
  };

  fwviz.copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = fwviz.el("textarea", { style: "position:fixed;opacity:0" });
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };

  // One polite sentence at the foot of the page.
  let quiet = 0;
  fwviz.say = (text) => {
    let toast = document.getElementById("fw-toast");
    if (!toast) {
      toast = fwviz.el("div", { id: "fw-toast", role: "status", "aria-live": "polite" });
      document.body.append(toast);
    }
    toast.textContent = text;
    toast.classList.add("shown");
    clearTimeout(quiet);
    quiet = setTimeout(() => toast.classList.remove("shown"), 4000);
  };
})();
