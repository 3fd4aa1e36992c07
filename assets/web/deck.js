/* The control deck: Run / Step / Pause / Stop, and the one scrubber over steps that all views share. */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.mountRunbar) return;

  // --- run bar -----------------------------------------------------------------------------------
  const WORDS = {
    idle: "Ready",
    queued: "Waiting",
    starting: "Starting",
    running: "Running",
    paused: "Paused",
    stopping: "Scoring",
    done: "Finished",
    stopped: "Stopped",
    failed: "Failed",
  };
  const LIVE = new Set(["queued", "starting", "running", "paused", "stopping"]);

  fwviz.mountRunbar = (element, props, trigger, watch) => {
    const get = (act) => element.querySelector(`[data-act=${act}]`);
    const message = element.querySelector(".fw-message");
    const state = element.querySelector(".fw-state");
    const forecast = element.querySelector(".fw-forecast");
    let value = { v: 0, status: "idle" };

    function show() {
      const { status } = value;
      const live = LIVE.has(status);
      get("run").disabled = live && status !== "paused";
      get("run").lastElementChild.textContent = status === "paused" ? "Resume" : "Run";
      get("step").disabled = live && !(status === "paused" || status === "running");
      get("pause").disabled = status !== "running";
      get("stop").disabled = !live;
      get("stop").lastElementChild.textContent = status === "stopping" ? "Skip" : "Stop";
      state.dataset.status = status;
      state.textContent = WORDS[status] || status;
      const wanted = fwviz.parse(fwviz.recipe(), null)?.pool;
      const elsewhere = !live && value.tone !== "error" && wanted && fwviz.poolShown && wanted !== fwviz.poolShown ? "The charts show another pool: press Run." : "";
      message.textContent = elsewhere || value.message || "";
      message.dataset.tone = (!elsewhere && value.tone) || "info";
      message.hidden = !message.textContent;
      forecast.textContent = fwviz.forecast || "";
      forecast.hidden = live || message.dataset.tone === "error" || !fwviz.forecast;
      fwviz.live = live;
    }

    function take() {
      const next = fwviz.parse(props.value, null);
      if (!next || next.v < value.v) return;
      value = next;
      if (next.job && next.remember) fwviz.remember(next.job);
      show();
      fwviz.emit("status", value);
    }

    element.addEventListener("click", (event) => {
      const act = event.target.closest("button[data-act]")?.dataset.act;
      if (!act) return;
      fwviz.clicked = performance.now();
      if (act === "run" && value.status === "paused") return trigger("pause", {});
      if (act === "run" || (act === "step" && !LIVE.has(value.status))) {
        value = { ...value, status: "starting", message: "" };
        show();
        fwviz.drawer(false);
        return trigger(act, { recipe: fwviz.recipe() });
      }
      trigger(act, {});
    });
    fwviz.on("forecast", show);
    fwviz.on("pool", show);
    watch("value", take);
    take();
    show();
  };

  // --- scrubber ----------------------------------------------------------------------------------
  fwviz.mountScrubber = (element, props, trigger, watch) => {
    const range = element.querySelector("input[type=range]");
    const play = element.querySelector("[data-act=play]");
    const label = element.querySelector(".fw-now");
    const facts = element.querySelector(".fw-facts");
    const badge = element.querySelector(".fw-badge");
    const title = element.querySelector(".fw-source");
    let value = { v: 0, ticks: [], index: 0 };
    let index = 0;
    let follow = true;
    let timer = null;
    let sent = -1;
    let later = null;
    const tell = fwviz.latest(trigger);

    const percent = (x) => (100 * x).toFixed(1) + " %";
    const short = (x) => (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 ? Number(x.toPrecision(3)).toString() : x.toExponential(1));

    function show() {
      const count = value.ticks.length;
      range.max = Math.max(count - 1, 0);
      range.value = index;
      range.disabled = count < 2;
      range.style.setProperty("--fw-share", count > 1 ? index / (count - 1) : 0);
      play.disabled = count < 2;
      play.textContent = timer ? "❚❚" : "▶";
      play.setAttribute("aria-label", timer ? "Pause the replay" : "Replay");
      element.querySelector("[data-act=back]").disabled = index <= 0;
      element.querySelector("[data-act=next]").disabled = index >= count - 1;
      const tick = value.ticks[index];
      if (!tick) {
        label.textContent = value.live ? "Preparing …" : "No steps yet";
        facts.replaceChildren();
      } else {
        const [, t, inner, loss, gap, accuracy] = tick;
        // An update belongs to the iterate it leads to, but stands between it and the one before.
        const from = inner ? Math.max(t - 1, 0) : t;
        const now = `t = ${from}` + (inner ? ` + ${inner}` : "");
        label.textContent = now;
        label.title = inner && t ? `Update ${inner} on the way to t = ${t}` : "";
        const parts = [];
        const fact = (name, text, help) => parts.push(fwviz.el("span", { title: help }, fwviz.el("i", {}, name), " ", fwviz.el("b", {}, text)));
        if (accuracy !== null) fact("accuracy (validation)", percent(accuracy), "Mean accuracy over the evaluation tasks, on a quick subset of the validation data; at the end of a run on all of it");
        if (loss !== null) fact("loss", short(loss), "Mean calibration loss of the evaluation tasks, in nats");
        if (gap !== null) fact("gap", short(gap), "Frank–Wolfe gap: at most this much could a step inside the hull still promise");
        facts.replaceChildren(...parts);
        range.setAttribute("aria-valuetext", `step ${index + 1} of ${count}, ${now}` + (accuracy !== null ? `, accuracy ${percent(accuracy)}` : ""));
      }
      badge.textContent = value.live ? "Live" : value.badge || "";
      badge.dataset.kind = value.live ? "live" : value.kind || "";
      badge.dataset.beat = value.ticks.length % 2;
      badge.hidden = !badge.textContent;
      title.textContent = value.title || "";
      title.title = value.title || "";
      element.querySelector("[data-act=follow]").hidden = !(value.live && !follow);
    }

    function cursor() {
      const tick = value.ticks[index];
      fwviz.cursor = { index, x: tick ? tick[0] : null, t: tick ? tick[1] : null };
      fwviz.emit("cursor", fwviz.cursor);
    }

    // One position is on its way at a time; the next one sent is where the scrubber stands by then. An answer that
    // never comes (a message that said no) must not hold the scrubber for long.
    let flying = -1e9;
    function send() {
      clearTimeout(later);
      later = setTimeout(
        () => {
          flying = performance.now();
          sent = index;
          tell("scrub", { view: value.view, index, follow });
        },
        Math.max(flying + 4000 - performance.now(), 30),
      );
    }
    function arrived() {
      flying = -1e9;
      clearTimeout(later);
      if (sent !== index) send();
    }

    function go(to, byHand = true) {
      const last = value.ticks.length - 1;
      const next = Math.min(Math.max(to, 0), last);
      if (byHand) follow = value.live ? next === last : false;
      if (next === index) return show();
      index = next;
      show();
      cursor();
      send();
      fwviz.setQuery({ t: value.live && follow ? null : String(index) });
    }
    fwviz.goTo = (to) => go(to);

    function halt() {
      clearInterval(timer);
      timer = null;
    }

    function toggle() {
      if (timer) {
        halt();
        return show();
      }
      if (value.ticks.length < 2) return;
      if (index >= value.ticks.length - 1) go(0);
      timer = setInterval(
        () => {
          go(index + 1);
          if (index >= value.ticks.length - 1) {
            halt();
            show();
          }
        },
        Math.min(Math.max(9000 / value.ticks.length, 90), 700),
      );
      show();
    }

    // A message was dropped on the way: the next one comes whole.
    function whole() {
      if (performance.now() - (whole.asked || -1e9) < 2000) return;
      whole.asked = performance.now();
      tell("scrub", { view: value.view, index, follow, whole: true });
    }
    fwviz.wholeDeck = whole;

    function take() {
      let next = fwviz.parse(props.value, null);
      if (!next || next.v < value.v) return;
      if (next.ack !== undefined) return arrived();
      if (next.d) {
        if (next.v - (next.since ?? 0) !== value.v) return whole();
        next = { ...fwviz.patched(value, next.d), v: next.v };
      }
      const other = next.view !== value.view;
      if (other) {
        halt();
        follow = next.follow !== false;
      }
      value = next;
      // Until a run has a step to show, its charts show what they showed before: they step back.
      document.documentElement.classList.toggle("fw-starting", value.live && !value.ticks.length);
      const last = Math.max(value.ticks.length - 1, 0);
      index = other || next.go || (follow && value.live) || (follow && next.index !== undefined) ? (next.index ?? last) : Math.min(index, last);
      if (fwviz.clicked && value.live && value.ticks.length) {
        fwviz.firstStep = performance.now() - fwviz.clicked;
        fwviz.clicked = 0;
      }
      fwviz.updates = (fwviz.updates || 0) + 1;
      if (fwviz.poolShown !== value.pool) fwviz.emit("pool", (fwviz.poolShown = value.pool));
      if (other) fwviz.setQuery({ job: null, view: null, ...value.link, t: next.follow === false && (value.link.job || value.link.view) ? String(index) : null });
      show();
      cursor();
      if (other && next.replay) {
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) go(last);
        else setTimeout(() => !timer && index === 0 && toggle(), 1200);
      }
    }

    range.addEventListener("input", () => {
      halt();
      go(Number(range.value));
    });
    element.addEventListener("click", (event) => {
      const act = event.target.closest("button[data-act]")?.dataset.act;
      if (!act) return;
      if (act === "play") return toggle();
      halt();
      if (act === "back") go(index - 1);
      if (act === "next") go(index + 1);
      if (act === "follow") {
        follow = true;
        go(value.ticks.length - 1);
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || !element.isConnected) return;
      const at = event.target;
      if (at !== range && at.closest?.("input, textarea, select, [contenteditable], summary, [role=tab], .fw-table")) return;
      if (event.key === " " && (at.closest?.("button, a") || at === range) && at !== range) return;
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        halt();
        go(index + (event.key === "ArrowRight" ? 1 : -1));
      } else if (event.key === " ") toggle();
      else return;
      event.preventDefault();
    });
    watch("value", take);
    take();
    show();
  };

  // --- tiles: the numbers of the step shown ---------------------------------------------------------
  fwviz.mountTiles = (element, props, watch) => {
    const list = element.querySelector("dl");
    let value = { v: 0, tiles: [] };
    function take() {
      let next = fwviz.parse(props.value, null);
      if (!next || next.v < value.v) return;
      if (next.d) {
        if (next.v - (next.since ?? 0) !== value.v) return fwviz.wholeDeck?.();
        next = { ...fwviz.patched(value, next.d), v: next.v };
      }
      value = next;
      list.replaceChildren(...value.tiles.map(([name, number, remark]) => fwviz.el("div", { class: "fw-tile" }, fwviz.el("dt", {}, name), fwviz.el("dd", {}, number, fwviz.el("small", {}, remark)))));
    }
    watch("value", take);
    take();
  };
})();
