/* The controls above the charts of a tab, made from what the server describes, and the lists of what is pinned. */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountControls) return;
  const { el } = fwviz;

  // --- the strip of a tab --------------------------------------------------------------------------
  fwviz.mountControls = (element, props, trigger, watch) => {
    const root = element.querySelector(".fw-strip");
    let value = { v: 0, fields: [] };
    let schema = "";
    let made = {};

    const drag = fwviz.latest(trigger);
    const link = (field, now) => fwviz.setQuery({ [`${value.tab}.${field.name}`]: now === field.default ? null : String(now) });

    function control(field) {
      const id = `fw-c-${value.tab}-${field.name}`;
      const now = () => value.fields.find((f) => f.name === field.name) || field;
      const send = (next, event = "choose") => {
        now().value = next;
        link(now(), next);
        (event === "tune" ? drag : trigger)(event, { name: field.name, value: next });
      };
      const label = el("label", { for: id }, field.label);
      const described = field.help ? { title: field.help } : {};
      if (field.kind === "choice" && field.choices.length <= 3 && field.choices.every(([, title]) => title.length < 26)) {
        // A few short choices are buttons: one click, all in sight.
        const group = el("div", { class: "fw-segments", role: "radiogroup", "aria-label": field.label });
        const inputs = field.choices.map(([choice, title]) => {
          const input = el("input", { type: "radio", name: id, value: choice, onchange: () => send(choice) });
          group.append(el("label", {}, input, el("span", {}, title)));
          return input;
        });
        const fill = (x) => inputs.forEach((input) => (input.checked = input.value === x));
        return { node: el("div", { class: "fw-control", ...described }, el("span", { class: "fw-c-label" }, field.label), group), fill };
      }
      if (field.kind === "choice") {
        const select = el("select", { id, onchange: () => send(select.value) }, ...field.choices.map(([choice, title]) => el("option", { value: choice }, title)));
        return { node: el("div", { class: "fw-control", ...described }, label, select), fill: (x) => (select.value = x) };
      }
      if (field.kind === "switch") {
        const box = el("input", { type: "checkbox", id, role: "switch", onchange: () => send(box.checked) });
        return { node: el("div", { class: "fw-control fw-c-switch", ...described }, box, label), fill: (x) => (box.checked = x) };
      }
      const slide = el("input", { type: "range", id, min: field.low, max: field.high, step: field.step });
      const shown = el("output", { for: id });
      const paint = (x) => {
        slide.style.setProperty("--fw-share", (x - field.low) / (field.high - field.low || 1));
        shown.textContent = String(Number(Number(x).toPrecision(4)));
      };
      slide.addEventListener("input", () => {
        paint(Number(slide.value));
        if (field.live) send(Number(slide.value), "tune");
      });
      // What is measured beside a control begins when it is let go.
      const settles = field.said !== undefined;
      const said = settles && el("span", { class: "fw-c-said", role: "status" });
      slide.addEventListener("change", () => send(Number(slide.value), settles ? "settle" : "choose"));
      const fill = (x) => {
        slide.value = x;
        paint(Number(x));
      };
      const say = (text) => said && (said.textContent = text);
      return { node: el("div", { class: "fw-control fw-c-number", ...described }, label, slide, shown, said), fill, say };
    }

    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v <= value.v) return;
      value = next;
      const described = JSON.stringify(next.fields.map((f) => ({ ...f, value: null, said: f.said === undefined })));
      if (described !== schema) {
        // Whoever stands on a control stays there when the list of choices changes.
        const at = document.activeElement?.id;
        schema = described;
        made = Object.fromEntries(next.fields.map((f) => [f.name, control(f)]));
        root.replaceChildren(...Object.values(made).map((m) => m.node));
        root.hidden = !next.fields.length;
        if (at && root.querySelector(`#${CSS.escape(at)}`)) root.querySelector(`#${CSS.escape(at)}`).focus();
      }
      for (const field of next.fields) {
        made[field.name].say?.(field.said);
        // An answer to an earlier move must not undo a later one, neither on the control nor in the address.
        if (made[field.name].node.contains(document.activeElement) && field.kind === "number") continue;
        made[field.name].fill(field.value);
        link(field, field.value);
      }
    }
    watch("value", take);
    take();
  };

  // --- what is pinned ------------------------------------------------------------------------------
  fwviz.pins = { checkpoint: null, layer: null };

  // What a click pins is marked at once, in all charts; the server follows.
  fwviz.pin = (changes, trigger) => {
    const next = { ...fwviz.pins };
    for (const [key, id] of Object.entries(changes)) next[key] = next[key] === id && Object.keys(changes).length === 1 ? null : id;
    if (Object.keys(changes).length > 1 && Object.entries(changes).every(([key, id]) => fwviz.pins[key] === id)) for (const key of Object.keys(changes)) next[key] = null;
    tell(next, trigger);
  };
  // The last change told to the server: answers to earlier ones, still under way, may not undo it.
  let told = null;
  const tell = (next, trigger) => {
    told = { checkpoint: next.checkpoint, layer: next.layer, until: performance.now() + 5000 };
    set(next);
    trigger({ pins: next });
  };
  const outdated = (next) => {
    if (!told || performance.now() > told.until) return false;
    const answered = (next.checkpoint || null) === told.checkpoint && (next.layer || null) === told.layer;
    if (answered) told = null;
    return !answered;
  };
  const set = (next) => {
    fwviz.pins = next;
    fwviz.setQuery({ pin: next.checkpoint, layer: next.layer });
    fwviz.emit("pins", next);
  };

  fwviz.mountPins = (element, props, send, watch) => {
    const later = fwviz.latest(send);
    const trigger = (data) => later("pin", data);
    fwviz.tellTab = (name) => send("tab", { name });
    const selects = Object.fromEntries([...element.querySelectorAll("select")].map((s) => [s.dataset.pin, s]));
    const clear = element.querySelector("[data-act=unpin]");
    let value = { v: 0 };
    let lists = "";
    const show = () => {
      for (const [key, select] of Object.entries(selects)) {
        select.value = fwviz.pins[key] || "";
        select.classList.toggle("on", Boolean(fwviz.pins[key]));
      }
      clear.hidden = !fwviz.pins.checkpoint && !fwviz.pins.layer;
    };
    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v <= value.v) return;
      value = next;
      const now = JSON.stringify([next.checkpoints, next.layers]);
      if (now !== lists) {
        lists = now;
        const option = ([id, title]) => el("option", { value: id }, title);
        selects.checkpoint.replaceChildren(option(["", "none"]), ...next.checkpoints.map(option));
        selects.layer.replaceChildren(option(["", "none"]), ...next.layers.map((name) => option([name, name])));
      }
      if (!outdated(next) && (next.checkpoint !== fwviz.pins.checkpoint || next.layer !== fwviz.pins.layer)) set({ checkpoint: next.checkpoint, layer: next.layer });
      show();
    }
    for (const [key, select] of Object.entries(selects)) {
      select.addEventListener("change", () => {
        tell({ ...fwviz.pins, [key]: select.value || null }, trigger);
      });
    }
    clear.addEventListener("click", () => {
      tell({ checkpoint: null, layer: null }, trigger);
    });
    fwviz.on("pins", show);
    watch("value", take);
    take();
  };
})();
