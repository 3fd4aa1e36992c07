/* The merge by hand: a table of buttons, one slider for what is picked, and the accuracy that answers. */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountEditor) return;
  const { el } = fwviz;

  fwviz.mountEditor = (element, props, trigger, watch) => {
    const get = (selector) => element.querySelector(selector);
    const table = get("table"), what = get(".fw-edit-what"), list = get("ul"), message = get(".fw-empty");
    const slide = get("input[type=range]"), number = get("input[type=number]");
    let value = { v: 0 };
    const tell = fwviz.latest(trigger);
    let edits = [];
    let picked = { checkpoint: null, layer: "" }; // "" is all layers; a null checkpoint is all checkpoints

    const near = (x) => (Math.abs(x) < 0.005 ? "0" : x.toFixed(2).replace(/0$/, "").replace("-", "−"));
    const column = () => value.checkpoints.findIndex(([id]) => id === picked.checkpoint);
    const row = () => value.layers.indexOf(picked.layer);

    function current() {
      const cells = [];
      value.values.forEach((line, g) => line.forEach((x, i) => (picked.layer === "" || g === row()) && (picked.checkpoint === null || i === column()) && cells.push(x)));
      return cells.reduce((sum, x) => sum + x, 0) / (cells.length || 1);
    }

    function show() {
      message.hidden = !value.problem;
      message.textContent = value.problem || "";
      get(".fw-edit").hidden = Boolean(value.problem);
      const changed = edits.length > 0;
      get("[data-act=reset]").hidden = !changed;
      get("[data-act=yaml]").hidden = get("[data-act=take]").hidden = !changed || !value.recipe;
      if (value.problem || !value.checkpoints) return;
      const title = picked.checkpoint === null ? "all checkpoints" : value.checkpoints[column()]?.[1];
      what.textContent = `${title}, ${picked.layer || "all layers"}`;
      const x = current();
      if (document.activeElement !== slide) slide.value = x;
      if (document.activeElement !== number) number.value = Number(x.toFixed(3));
      slide.style.setProperty("--fw-share", (slide.value - slide.min) / (slide.max - slide.min));
      const top = Math.max(1, ...value.values.flat().map(Math.abs));
      const mark = new Set(edits.map(([layer, checkpoint]) => `${layer} ${checkpoint}`));
      const button = (label, checkpoint, layer, text, x) => {
        const on = picked.checkpoint === checkpoint && picked.layer === layer;
        const node = el("button", { type: "button", "aria-label": label, "aria-pressed": String(on), onclick: () => pick(checkpoint, layer) }, text);
        if (x !== undefined) {
          const share = Math.round((100 * Math.min(Math.abs(x), top)) / top);
          node.style.background = `color-mix(in srgb, var(${x < 0 ? "--fw-unwanted" : "--fw-wanted"}) ${Math.round(share * 0.55)}%, var(--fw-card))`;
        }
        return node;
      };
      const head = el("tr", {}, el("th", { scope: "col" }, button("All checkpoints, all layers", null, "", "all")), ...value.layers.map((layer) => el("th", { scope: "col" }, button(`All checkpoints, ${layer}`, null, layer, layer.replace("block.", "block ")))));
      const lines = value.checkpoints.map(([id, title], i) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, button(`${title}, all layers`, id, "", title)),
          ...value.layers.map((layer, g) => {
            const cell = el("td", { class: mark.has(`${layer} ${id}`) || mark.has(` ${id}`) ? "changed" : null });
            cell.append(button(`${title}, ${layer}: ${near(value.values[g][i])}`, id, layer, near(value.values[g][i]), value.values[g][i]));
            return cell;
          }),
        ),
      );
      // Whoever stands on a button of the table stays on it.
      const at = [...table.querySelectorAll("button")].indexOf(document.activeElement);
      table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...lines));
      if (at >= 0) table.querySelectorAll("button")[at]?.focus();
      const percent = (x) => (100 * x).toFixed(1) + " %";
      const all = value.tasks.filter(([id]) => value.accuracy?.[id] !== undefined || value.tasks.every((task) => task[2] !== null));
      const mean = (pick) => all.reduce((sum, task) => sum + pick(task), 0) / (all.length || 1);
      const now = ([id, , before]) => value.accuracy?.[id] ?? before ?? 0;
      const rows = [["", "Average", mean((t) => t[2] ?? 0), mean(now)], ...value.tasks.map((t) => [t[0], t[1], t[2], now(t)])];
      list.replaceChildren(
        ...rows.map(([id, title, before, after]) => {
          const gain = before === null ? 0 : after - before;
          const said = changed && before !== null ? `${gain < -5e-4 ? "−" : "+"}${Math.abs(100 * gain).toFixed(1)}` : "";
          const bar = el("i");
          bar.style.width = `${100 * after}%`;
          return el("li", { class: id ? null : "all" }, el("span", {}, title), el("div", {}, bar), el("b", {}, percent(after)), el("em", { "data-sign": gain < -5e-4 ? "down" : gain > 5e-4 ? "up" : "same" }, said));
        }),
      );
      get("h4 small").textContent = value.seconds && changed ? `64 validation samples a task, ${value.seconds.toFixed(2)} s` : "64 validation samples a task";
    }

    function pick(checkpoint, layer) {
      picked = { checkpoint, layer };
      show();
    }

    function set(x) {
      if (!Number.isFinite(x) || Math.abs(x) > value.most) return;
      const wanted = picked.checkpoint === null ? value.checkpoints.map(([id]) => id) : [picked.checkpoint];
      edits = edits.filter(([layer, id]) => !(wanted.includes(id) && (picked.layer === "" || layer === picked.layer)));
      for (const id of wanted) edits.push([picked.layer, id, x]);
      value.values = value.values.map((line, g) => line.map((old, i) => ((picked.layer === "" || g === row()) && wanted.includes(value.checkpoints[i][0]) ? x : old)));
      show();
      send();
    }

    function send() {
      fwviz.edited = performance.now();
      tell("edit", { edits });
    }

    slide.addEventListener("input", () => set(Number(slide.value)));
    number.addEventListener("change", () => number.value !== "" && set(Number(number.value)));
    element.addEventListener("click", (event) => {
      const act = event.target.closest("button[data-act]")?.dataset.act;
      if (act === "reset") {
        edits = [];
        send();
      }
      if (act === "take") trigger("recipe", {});
      if (act === "yaml") {
        const url = URL.createObjectURL(new Blob([value.recipe], { type: "application/yaml" }));
        el("a", { href: url, download: "fwviz-by-hand.yaml" }).click();
        setTimeout(() => URL.revokeObjectURL(url), 10000);
      }
    });
    // What is marked in the charts is what the slider moves.
    fwviz.on("pins", ({ checkpoint, layer }) => {
      if (value.checkpoints?.some(([id]) => id === checkpoint)) pick(checkpoint, value.layers.includes(layer) ? layer : "");
    });

    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v <= value.v) return;
      const first = !value.checkpoints;
      value = next;
      if (next.edits) {
        edits = next.edits;
        fwviz.setQuery({ edits: next.link });
      }
      if (next.accuracy && fwviz.edited) {
        fwviz.editSeconds = (performance.now() - fwviz.edited) / 1000;
        fwviz.edited = 0;
      }
      const { checkpoint, layer } = fwviz.pins || {};
      if (first && next.checkpoints) picked = { checkpoint: checkpoint || next.checkpoints[0][0], layer: layer && next.layers.includes(layer) ? layer : "" };
      show();
    }
    watch("value", take);
    take();
  };
})();
