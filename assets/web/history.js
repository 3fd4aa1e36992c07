/* Run history, comparison and what can be taken home. Ids of one's own runs live in this browser only. */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountHistory) return;
  const KEY = "fwviz.runs";

  fwviz.runs = () => {
    try {
      const ids = JSON.parse(localStorage.getItem(KEY) || "[]");
      return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(0, 100) : [];
    } catch {
      return [];
    }
  };
  const keep = (ids) => {
    try {
      localStorage.setItem(KEY, JSON.stringify(ids.slice(0, 100)));
    } catch {
      /* without storage the history lasts as long as the page */
    }
  };
  fwviz.remember = (id) => {
    const ids = fwviz.runs();
    if (!ids.includes(id)) keep([id, ...ids]);
  };

  fwviz.mountHistory = (element, props, trigger, watch) => {
    const { el } = fwviz;
    const body = element.querySelector("tbody");
    const empty = element.querySelector(".fw-empty");
    let value = { v: 0, rows: [], compare: [] };
    let compare = new Set();
    const tell = fwviz.latest(trigger);

    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v < value.v) return;
      value = next;
      compare = new Set(next.compare);
      show();
    }

    function show() {
      empty.hidden = value.rows.length > 0;
      body.replaceChildren(
        ...value.rows.map((row) => {
          const box = el("input", { type: "checkbox", "aria-label": `Compare ${row.title}`, checked: compare.has(row.id) });
          box.addEventListener("change", () => {
            if (box.checked) compare.add(row.id);
            else compare.delete(row.id);
            fwviz.setQuery({ compare: [...compare].join(",") });
            tell("compare", { ids: [...compare] });
          });
          const open = el("button", { type: "button", class: "fw-link", onclick: () => trigger("open", { id: row.id }), "aria-current": row.id === value.open }, row.title);
          const remove = row.own
            ? el(
                "button",
                {
                  type: "button",
                  class: "fw-quiet",
                  "aria-label": `Delete ${row.title}`,
                  title: "Delete this run",
                  onclick: () => {
                    keep(fwviz.runs().filter((id) => "run:" + id !== row.id));
                    trigger("forget", { id: row.id, runs: fwviz.runs() });
                  },
                },
                "✕",
              )
            : null;
          const note = [row.settings, row.note].filter(Boolean).join(" · ");
          return el(
            "tr",
            { class: row.id === value.open ? "open" : null },
            el("td", {}, box),
            el("td", {}, open, note ? el("small", {}, note) : null),
            el("td", {}, row.when),
            el("td", { class: "num" }, `${row.tasks} / ${row.checkpoints}`),
            el("td", { class: "num" }, row.accuracy === null ? "–" : (100 * row.accuracy).toFixed(1) + " %"),
            el("td", { class: "num" }, row.seconds === null ? "–" : row.seconds < 100 ? row.seconds.toFixed(1) + " s" : Math.round(row.seconds) + " s"),
            el("td", {}, el("span", { class: "fw-state", "data-status": row.status }, row.status)),
            el("td", {}, remove),
          );
        }),
      );
    }
    watch("value", take);
    take();
  };

  fwviz.mountExport = (element, props, trigger, watch) => {
    let value = { v: 0 };
    const link = (name) => element.querySelector(`a[data-what=${name}]`);
    const cli = element.querySelector(".fw-cli");
    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v < value.v) return;
      value = next;
      show();
    }
    function show() {
      const on = Boolean(value.view);
      const at = fwviz.cursor?.index ?? 0;
      for (const what of ["weights", "recipe", "table", "trace"]) {
        const anchor = link(what);
        const query = what === "weights" ? `?index=${at}` : "";
        if (on && value[what] !== false) anchor.href = `fwviz/export/${encodeURIComponent(value.view)}/${what}${query}`;
        else anchor.removeAttribute("href");
      }
      const t = fwviz.cursor?.t;
      link("weights").querySelector("small").textContent = Number.isFinite(t) ? `merged model at t = ${t}` : "merged model at the step shown";
      cli.textContent = value.cli || "";
    }
    fwviz.on("cursor", show);
    element.addEventListener("click", async (event) => {
      if (event.target.closest("[data-act=copy]")) fwviz.say((await fwviz.copy(cli.textContent)) ? "Command copied." : "Select the command and copy it.");
      const anchor = event.target.closest("a[data-what=weights]");
      if (anchor?.href) fwviz.say("Writing the merged weights: the download starts when they are ready.");
    });
    watch("value", take);
    take();
  };
})();
