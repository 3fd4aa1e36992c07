/* The sidebar's form: pool, evaluation tasks, checkpoints, method and its settings. It holds the recipe being made.
 *
 * The server sends what can be chosen (once per pool) and a recipe; each edit goes back as one event with the whole
 * recipe. Controls are made from the settings' own description: range, choices, help, and when they apply.
 */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountForm) return;
  const { el } = fwviz;
  const MAIN_SETTINGS = 5;
  const ASK_AGAIN = 6000; // ms

  fwviz.recipe = () => null;

  fwviz.mountForm = (element, props, trigger, watch) => {
    let value = { v: 0 };
    let recipe = null;
    let drawn = null; // id of the pool that is on screen
    let later = null;
    let lacks = null; // the timer that asks for rankings that did not come
    let wasLive = false;
    const root = element.querySelector(".fw-form");
    const parts = {};
    const tell = fwviz.latest(trigger);
    const own = fwviz.makeOwn((data) => trigger("own", { ...data, pool: value.pool.id }));
    fwviz.recipe = () => JSON.stringify(recipe);

    function edited(what) {
      clearTimeout(later);
      later = setTimeout(() => tell("edit", { recipe: JSON.stringify(recipe), what }), 150);
    }

    const section = (name, title, ...children) => {
      const id = `fw-form-${name}`;
      return el("section", { "aria-labelledby": id }, el("h2", { id }, title), ...children);
    };
    const tools = (name, buttons) =>
      el("div", { class: "fw-quick" }, ...buttons.map(([label, act, help]) => el("button", { type: "button", onclick: act, title: help, "aria-label": `${label}: ${name}` }, label)));

    // --- pool ------------------------------------------------------------------------------------
    function drawPool() {
      const { pool, pools } = value;
      const choose = () => {
        tell("pool", { pool: select.value });
        select.value = pool.id; // a pool that cannot be opened leaves the form as it is
      };
      const select = el("select", { id: "fw-pool", onchange: choose }, ...pools.map((p) => el("option", { value: p.id, selected: p.id === pool.id }, p.title)));
      return section("pool", "Pool", el("label", { class: "fw-sr", for: "fw-pool" }, "Pool of checkpoints"), select, el("p", { class: "fw-help" }, pool.summary));
    }

    // --- tasks -----------------------------------------------------------------------------------
    function drawTasks() {
      const { pool } = value;
      const list = el("div", { class: "fw-tasks", role: "group", "aria-label": "Evaluation tasks" });
      for (const task of pool.tasks) {
        const box = el("input", { type: "checkbox", value: task.id, onchange: () => pick("tasks", pool.tasks, task.id, box.checked) });
        list.append(el("label", { class: "fw-task", title: `${task.question}  Base ${Math.round(100 * task.base)} %, own checkpoint ${Math.round(100 * task.individual)} %.` }, box, el("span", {}, task.title)));
      }
      parts.tasks = list;
      parts.taskCount = el("span", { class: "fw-count" });
      const quick = tools("evaluation tasks", [
        ["Default", () => setAll("tasks", pool.default_tasks), "The tasks the pool suggests"],
        ["All", () => setAll("tasks", pool.tasks.map((t) => t.id)), "All tasks of the pool"],
      ]);
      const made = section("tasks", "Evaluation tasks", el("p", { class: "fw-help" }, "What the merged model should be good at."), list);
      made.querySelector("h2").append(parts.taskCount);
      made.querySelector("h2").after(quick);
      return made;
    }

    // --- checkpoints -----------------------------------------------------------------------------
    function drawCheckpoints() {
      const { pool } = value;
      const list = el("div", { class: "fw-checkpoints", role: "group", "aria-label": "Checkpoints to merge" });
      for (const checkpoint of pool.checkpoints) {
        const box = el("input", { type: "checkbox", value: checkpoint.id, onchange: () => pick("checkpoints", pool.checkpoints, checkpoint.id, box.checked) });
        const kind = checkpoint.kind && checkpoint.kind !== "own" ? el("span", { class: "fw-kind" }, checkpoint.kind.replaceAll("_", " ")) : null;
        list.append(
          el(
            "label",
            { class: "fw-checkpoint", "data-id": checkpoint.id, title: checkpoint.note || "" },
            box,
            el("span", { class: "fw-name" }, checkpoint.title, kind),
            el("span", { class: "fw-accuracy", title: "Accuracy on its own task (test split), as measured when the pool was made" }, checkpoint.accuracy === null ? "" : `${Math.round(100 * checkpoint.accuracy)} %`),
            el("span", { class: "fw-chips" }),
          ),
        );
      }
      parts.checkpoints = list;
      parts.checkpointCount = el("span", { class: "fw-count" });
      parts.relevance = el("p", { class: "fw-help" });
      const quick = tools("checkpoints", [
        ["Wanted", () => setAll("checkpoints", wanted()), "Only the checkpoints that the oracle ranks first for a chosen task"],
        ["Default", () => setAll("checkpoints", pool.default_checkpoints), "The checkpoints the pool suggests"],
        ["All", () => setAll("checkpoints", pool.checkpoints.map((c) => c.id)), "All checkpoints of the pool"],
      ]);
      const made = section("checkpoints", "Checkpoints", parts.relevance, list);
      made.querySelector("h2").append(parts.checkpointCount);
      made.querySelector("h2").after(quick);
      return made;
    }

    const wanted = () => {
      const first = recipe.tasks.map((task) => value.relevance?.[task]?.[0]).filter(Boolean);
      const ids = value.pool.checkpoints.map((c) => c.id).filter((id) => first.includes(id));
      return ids.length ? ids : recipe.checkpoints;
    };

    function pick(name, all, id, on) {
      const chosen = new Set(recipe[name]);
      if (on) chosen.add(id);
      else chosen.delete(id);
      setAll(name, all.map((item) => item.id).filter((other) => chosen.has(other)));
    }

    function setAll(name, ids) {
      recipe[name] = [...ids];
      fill();
      edited(name);
    }

    // --- method and settings ---------------------------------------------------------------------
    function drawMethod() {
      const select = el("select", { id: "fw-method", onchange: () => setMethod(select.value) }, ...value.groups.map((group) => el("optgroup", { label: group }, ...value.methods.filter((m) => m.group === group).map((m) => el("option", { value: m.name, title: m.summary }, m.title)))));
      parts.method = select;
      parts.methodDoc = el("p", { class: "fw-help" });
      parts.paper = el("p", { class: "fw-help fw-paper" });
      parts.presets = el("div", { class: "fw-presets", role: "group", "aria-label": "Presets of the method" });
      parts.settings = el("div", { class: "fw-settings" });
      return section("method", "Method", el("label", { class: "fw-sr", for: "fw-method" }, "Merge method"), select, parts.methodDoc, parts.paper, parts.presets, parts.settings);
    }

    // Named settings of the method: over its defaults, one click.
    function drawPresets(method) {
      const same = (changes) => method.settings.every((s) => recipe.settings[s.name] === (changes[s.name] ?? s.default));
      parts.presets.replaceChildren(
        ...method.presets.map(([title, changes]) =>
          el(
            "button",
            {
              type: "button",
              "aria-pressed": String(same(changes)),
              onclick: () => {
                setMethod(method.name, changes);
              },
            },
            title,
          ),
        ),
      );
    }

    function setMethod(name, changes = {}) {
      const method = value.methods.find((m) => m.name === name);
      recipe.method = name;
      if (name !== "given_coefficients") delete recipe.coefficients;
      recipe.settings = { ...Object.fromEntries(method.settings.map((s) => [s.name, s.default])), ...changes };
      drawSettings();
      fill();
      edited("method");
    }

    function drawSettings() {
      const method = value.methods.find((m) => m.name === recipe.method);
      parts.fields = [];
      const main = el("div", {});
      const more = el("details", { class: "fw-more" }, el("summary", {}, "More settings"));
      method.settings.forEach((spec, i) => {
        const field = control(spec);
        parts.fields.push({ spec, field });
        (i < MAIN_SETTINGS ? main : more).append(field.node);
      });
      const general = el("div", {});
      for (const spec of value.general) {
        const field = control(spec, recipe);
        parts.fields.push({ spec, field });
        general.append(field.node);
      }
      more.append(general);
      const reset = el("button", { type: "button", class: "fw-link", onclick: () => setMethod(recipe.method) }, "Back to the method's defaults");
      more.append(reset);
      parts.settings.replaceChildren(main, more);
    }

    // One control; `home` is where its value lives: the recipe's settings, or the recipe itself for seed and device.
    function control(spec, home) {
      const id = `fw-set-${spec.name}`;
      const where = () => home || recipe.settings;
      const set = (next) => {
        where()[spec.name] = next;
        drawPresets(value.methods.find((m) => m.name === recipe.method));
        applies();
        edited(spec.name);
      };
      const helpId = `${id}-help`;
      const help = el("small", { id: helpId, class: "fw-help" }, spec.help);
      const label = el("label", { for: id }, spec.label || spec.name.replaceAll("_", " "));
      if (spec.kind === "bool") {
        const box = el("input", { type: "checkbox", id, role: "switch", "aria-describedby": helpId, onchange: () => set(box.checked) });
        return { node: el("div", { class: "fw-field fw-switch" }, box, label, help), fill: () => (box.checked = Boolean(where()[spec.name])) };
      }
      if (spec.choices.length) {
        const select = el("select", { id, "aria-describedby": helpId, onchange: () => set(select.value) }, ...spec.choices.map((c) => el("option", { value: c }, c.replaceAll("_", " "))));
        return { node: el("div", { class: "fw-field" }, label, select, help), fill: () => (select.value = where()[spec.name] ?? spec.default) };
      }
      const whole = spec.kind === "int";
      const bounded = spec.low !== null && spec.high !== null && spec.high - spec.low < 1e6;
      const wide = bounded && spec.low > 0 && spec.high / spec.low >= 200;
      const number = el("input", { type: "number", id, step: whole ? 1 : "any", min: spec.low, max: spec.high, inputmode: "decimal", "aria-describedby": helpId });
      number.addEventListener("change", () => set(number.value === "" ? null : Number(number.value)));
      const row = el("div", { class: "fw-number" });
      let slide = null;
      const to = (x) => (wide ? Math.log(x / spec.low) / Math.log(spec.high / spec.low) : x);
      const from = (s) => (wide ? Number((spec.low * (spec.high / spec.low) ** s).toPrecision(2)) : Number(s));
      if (bounded) {
        const step = wide ? 0.001 : whole ? 1 : Number(((spec.high - spec.low) / 200).toPrecision(1));
        slide = el("input", { type: "range", min: wide ? 0 : spec.low, max: wide ? 1 : spec.high, step, "aria-label": label.textContent, tabindex: -1, "aria-hidden": "true" });
        slide.addEventListener("input", () => {
          const x = whole ? Math.round(from(slide.value)) : from(slide.value);
          number.value = x;
          paint();
          set(x);
        });
        row.append(slide);
      }
      const paint = () => {
        if (!slide) return;
        const x = Number(number.value);
        slide.value = to(x);
        slide.style.setProperty("--fw-share", (Number(slide.value) - Number(slide.min)) / (Number(slide.max) - Number(slide.min)));
      };
      row.append(number);
      return {
        node: el("div", { class: "fw-field" }, label, row, help),
        fill: () => {
          number.value = where()[spec.name] ?? "";
          paint();
        },
      };
    }

    // A setting that has no effect under the others' values is hidden.
    function applies() {
      for (const { spec, field } of parts.fields) {
        const on = Object.entries(spec.applies || {}).every(([name, values]) => values.includes(recipe.settings[name]));
        field.node.hidden = !on;
      }
    }

    // --- filling ---------------------------------------------------------------------------------
    function fill() {
      const { pool } = value;
      for (const [name, list, count] of [
        ["tasks", parts.tasks, parts.taskCount],
        ["checkpoints", parts.checkpoints, parts.checkpointCount],
      ]) {
        const chosen = new Set(recipe[name]);
        for (const box of list.querySelectorAll("input")) {
          box.checked = chosen.has(box.value);
          box.closest("label").classList.toggle("on", box.checked);
        }
        count.textContent = ` ${chosen.size} of ${name === "tasks" ? pool.tasks.length : pool.checkpoints.length}`;
      }
      parts.method.value = recipe.method;
      const method = value.methods.find((m) => m.name === recipe.method);
      parts.methodDoc.textContent = method.summary;
      parts.paper.textContent = method.paper;
      drawPresets(method);
      for (const { field } of parts.fields) field.fill();
      applies();
      chips();
    }

    // Which chosen task ranks this checkpoint first, at the base.
    function chips() {
      const titles = Object.fromEntries(value.pool.tasks.map((t) => [t.id, t.title]));
      const first = {};
      let known = 0;
      for (const task of recipe.tasks) {
        const ranking = value.relevance?.[task];
        if (!ranking) continue;
        known += 1;
        (first[ranking[0]] ||= []).push(task);
      }
      const lacking = known < recipe.tasks.length;
      const why = value.missing ? (known ? "the others " : "") + value.missing : "still measuring";
      parts.relevance.textContent = !known && !value.missing
        ? "Which task's oracle wants which checkpoint first is being measured …"
        : `Chips: the chosen tasks whose oracle ranks a checkpoint first at the base${lacking ? ` (${why})` : ""}.`;
      // Whatever kept the answer away (a run of somebody else's, a message that was lost), it is asked for again.
      clearTimeout(lacks);
      if (lacking && !value.stuck) lacks = setTimeout(() => (wasLive ? chips() : ask()), ASK_AGAIN);
      for (const row of parts.checkpoints.querySelectorAll(".fw-checkpoint")) {
        const mine = first[row.dataset.id] || [];
        row.querySelector(".fw-chips").replaceChildren(...mine.map((task) => el("span", { class: "fw-chip", title: `The gradient of ${titles[task]} wants this checkpoint most` }, titles[task])));
      }
    }

    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v <= value.v) return;
      value = { ...value, ...(next.pool ? { missing: "", stuck: false } : {}), ...next };
      if (next.own) own.take(next.own);
      if (next.recipe) recipe = next.recipe;
      if (next.query !== undefined) fwviz.setRecipeQuery(next.query);
      if (next.forecast !== undefined) fwviz.emit("forecast", (fwviz.forecast = next.forecast));
      if (!value.pool || !recipe) return;
      if (drawn !== value.pool.id) {
        drawn = value.pool.id;
        root.replaceChildren(drawPool(), own.node, drawTasks(), drawCheckpoints(), drawMethod());
        drawSettings();
        own.fit(value.pool);
      } else if (next.recipe) drawSettings();
      fill();
      root.classList.remove("loading");
      if (next.pool) rank();
    }

    // While a run is under way nothing is ranked: ask again when it has ended, and how long another would take.
    const ask = () => tell("edit", { recipe: JSON.stringify(recipe), what: "open" });
    const rank = () => recipe?.tasks.some((task) => !value.relevance?.[task]) && ask();
    fwviz.on("status", ({ status }) => {
      const live = ["queued", "starting", "running", "paused", "stopping"].includes(status);
      if (wasLive && !live && recipe) ask();
      wasLive = live;
    });
    watch("value", take);
    take();
  };
})();
