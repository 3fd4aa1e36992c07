/* The form's section "Bring your own": a task of labelled examples, checkpoints, or a base for them. Files go to the
 * server piece by piece over a plain request; what is made of them comes back as a pool of this page's own.
 */
(() => {
  const fwviz = (window.fwviz ||= {});
  if (fwviz.makeOwn) return;
  const { el } = fwviz;
  const MAX_TASK = 32 << 20;
  const MAX_CHECKPOINT = 1 << 30;

  const size = (bytes) => (bytes >= 1 << 20 ? `${(bytes / (1 << 20)).toFixed(1)} MB` : `${Math.max(1, Math.round(bytes / 1024))} kB`);

  fwviz.makeOwn = (send) => {
    let key = "";
    let busy = null; // the part that waits for an answer
    let pool = { inputs: "images", heads: "texts" };
    let base = null; // what the server says of a base of this page's own that is no pool yet

    // --- a part: a file to choose, how far it is, what came of it -------------------------------
    function makePart(name, { title, accept, multiple, most, chosen }) {
      const part = {};
      const id = `fw-own-${name}`;
      part.help = el("p", { class: "fw-help", id: `${id}-help` });
      part.file = el("input", { type: "file", id, accept, multiple, "aria-describedby": `${id}-help` });
      part.label = el("span", {});
      part.drop = el("label", { class: "fw-drop", for: id }, part.file, part.label);
      part.bar = el("i", {});
      part.progress = el("div", { class: "fw-progress", role: "progressbar", "aria-label": title, "aria-valuemin": 0, "aria-valuemax": 100, hidden: true }, el("div", {}, part.bar));
      part.said = el("div", { class: "fw-own-said", role: "status", "aria-live": "polite" });
      part.more = el("div", {});
      part.after = el("div", {});
      part.title = el("h3", {}, title);
      part.node = el("div", { class: "fw-own-part" }, part.title, part.help, part.drop, part.more, part.progress, part.said, part.after);
      part.take = (files) => {
        const found = [...files];
        if (!found.length || busy) return;
        const large = found.find((file) => file.size > most);
        if (large) return say(part, [`${large.name} has ${size(large.size)}, but a file of this kind may have ${size(most)}.`], true);
        chosen(found);
      };
      part.file.addEventListener("change", () => {
        part.take(part.file.files);
        part.file.value = ""; // so that the same file can be chosen again
      });
      for (const kind of ["dragenter", "dragover"])
        part.drop.addEventListener(kind, (event) => {
          event.preventDefault();
          part.drop.classList.add("over");
        });
      for (const kind of ["dragleave", "drop"]) part.drop.addEventListener(kind, () => part.drop.classList.remove("over"));
      part.drop.addEventListener("drop", (event) => {
        event.preventDefault();
        part.take(event.dataTransfer.files);
      });
      return part;
    }

    // With a report on as many models, the sentences on those that are refused stand out.
    function say(part, sentences, wrong = false, models = []) {
      part.said.classList.toggle("wrong", wrong);
      part.said.replaceChildren(...sentences.map((text, i) => el("p", { class: models[i]?.findings[0]?.severity === "error" ? "wrong" : "" }, text)));
    }

    // What else was found in each model, beside the sentence that is said of it.
    const words = { error: "wrong", warning: "mind", fact: "found" };
    function report(part, models) {
      const found = models.filter((model) => model.findings.length > 1);
      if (!found.length) return;
      const rows = found.map((model) => [el("dt", {}, model.name), ...model.findings.map((one) => el("dd", { "data-severity": one.severity }, el("b", {}, words[one.severity]), el("span", {}, one.text)))]);
      part.said.append(el("details", { class: "fw-more fw-own-report" }, el("summary", {}, "All that was found"), el("dl", {}, ...rows.flat())));
    }

    function show(part, share, text) {
      part.progress.hidden = share === null;
      if (share !== null) {
        part.bar.style.width = `${Math.round(100 * share)}%`;
        part.progress.setAttribute("aria-valuenow", String(Math.round(100 * share)));
      }
      if (text) say(part, [text]);
    }

    function work(part) {
      busy = part;
      for (const control of node.querySelectorAll("input, button")) control.disabled = true;
    }

    function rest() {
      if (busy) show(busy, null);
      busy = null;
      for (const control of node.querySelectorAll("input, button")) control.disabled = false;
      task.file.disabled = Boolean(base && !base.checkpoints.length);
    }

    // One file as the body of a request: counted here for the bar, and on the server for safety.
    function upload(part, kind, file, done, all, first) {
      return new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open("POST", new URL(`fwviz/bring/${encodeURIComponent(key)}`, document.baseURI));
        request.setRequestHeader("X-Fwviz-Kind", kind);
        request.setRequestHeader("X-Fwviz-Name", encodeURIComponent(file.name));
        if (first) request.setRequestHeader("X-Fwviz-First", "1"); // what came before and was refused goes
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.upload.addEventListener("progress", (event) => show(part, (done + event.loaded) / Math.max(all, 1), `Sending ${file.name} …`));
        request.addEventListener("load", () => {
          const answer = fwviz.parse(request.responseText, null);
          if (answer?.file) resolve(answer.file);
          else reject(new Error(answer?.problem || "The file could not be sent: try again."));
        });
        for (const kind of ["error", "abort", "timeout"]) request.addEventListener(kind, () => reject(new Error("The connection was lost on the way: try again.")));
        request.send(file);
      });
    }

    async function bring(part, kind, files, ask) {
      work(part);
      const all = files.reduce((sum, file) => sum + file.size, 0);
      const ids = [];
      let done = 0;
      try {
        for (const file of files) {
          ids.push(await upload(part, kind, file, done, all, !ids.length));
          done += file.size;
        }
        show(part, 0, "Looking at it …");
        send(ask(ids));
      } catch (error) {
        rest();
        say(part, [error.message], true);
      }
    }

    // --- your task ------------------------------------------------------------------------------
    let last = null; // what the server said of the task made last
    const task = makePart("task", {
      title: "Your task",
      accept: ".zip,.csv,.tsv",
      most: MAX_TASK,
      chosen: (files) => {
        task.after.replaceChildren();
        bring(task, "task", files.slice(0, 1), ([file]) => ({ what: "task", file, base: Boolean(base) }));
      },
    });

    // What the classes are called in prompts: the head is made of these words, so they matter.
    function drawNames() {
      const fields = last.classes.map(([folder, name], i) => {
        const id = `fw-own-name-${i}`;
        const input = el("input", { type: "text", id, value: name, maxlength: 100, autocomplete: "off" });
        return [folder, input, el("div", { class: "fw-own-name" }, el("label", { for: id }, folder), input)];
      });
      // Only heads made of texts have prompts: other models answer with the words themselves.
      const prompted = last.prompts.length > 0;
      const prompts = el("textarea", { id: "fw-own-prompts", rows: Math.min(4, last.prompts.length + 1), spellcheck: "false" });
      prompts.value = last.prompts.join("\n");
      const again = el("button", { type: "button", class: "fw-button" }, "Use these words");
      again.addEventListener("click", () => {
        work(task);
        show(task, 0, "Looking at it …");
        const lines = prompts.value.split("\n").map((line) => line.trim());
        send({ what: "task", file: last.file, names: Object.fromEntries(fields.map(([folder, input]) => [folder, input.value])), prompts: lines.filter(Boolean) });
      });
      const help = prompted ? "The model compares each example with these words; better words, better answers." : "The model's answer is the likeliest of these words.";
      const words = el("details", { class: "fw-more" }, el("summary", {}, prompted ? "Words for the classes" : "Words for the answers"), el("p", { class: "fw-help" }, help));
      words.append(...fields.map(([, , row]) => row), ...(prompted ? [el("label", { for: "fw-own-prompts", class: "fw-own-label" }, "Prompts, one a line, {} for the class"), prompts] : []), again);
      const tab = el("button", { type: "button", class: "fw-button", onclick: seeRanking }, "See which checkpoints it wants");
      const run = el("button", { type: "button", class: "fw-button fw-strong", onclick: runNow }, "Merge for it");
      task.after.replaceChildren(el("div", { class: "fw-own-next" }, tab, run), ...(fields.length ? [words] : []));
    }

    // A tab of the page, which on a narrow one may be in the menu behind "…".
    function openTab(name) {
      fwviz.drawer(false);
      const buttons = [...document.querySelectorAll("#fw-tabs button[role=tab], #fw-tabs .overflow-dropdown button")];
      buttons.find((button) => button.textContent.trim().startsWith(name))?.click();
      window.scrollTo({ top: 0, behavior: "smooth" });
    }

    const seeRanking = () => openTab("Relevance");

    // The accuracy before and after stands on the tab of the merge.
    function runNow() {
      openTab("Merge");
      document.querySelector("#fw-runbar [data-act=run]")?.click();
    }

    // --- your checkpoints -----------------------------------------------------------------------
    const checkpoints = makePart("checkpoints", {
      title: "Your checkpoints",
      accept: ".safetensors,.zip,.json",
      multiple: true,
      most: MAX_CHECKPOINT,
      chosen: (files) => bring(checkpoints, "checkpoint", files, (ids) => ({ what: "checkpoints", files: ids, base: Boolean(base) })),
    });
    checkpoints.label.textContent = "Choose .safetensors or .zip files";
    checkpoints.more.append(...askHub(checkpoints, "fw-own-hub", "or ids of models on the Hub", "owner/name owner/name", (hub) => ({ what: "checkpoints", files: [], hub, base: Boolean(base) })));

    // --- your base ------------------------------------------------------------------------------
    const ground = makePart("base", {
      title: "Your base",
      accept: ".safetensors,.json,.txt,.model,.zip",
      multiple: true,
      most: MAX_CHECKPOINT,
      chosen: (files) => bring(ground, "base", files, (ids) => ({ what: "base", files: ids })),
    });
    ground.label.textContent = "Choose its files, or a .zip";
    ground.more.append(...askHub(ground, "fw-own-base-hub", "or the id of a model on the Hub", "owner/name", (hub) => ({ what: "base", files: [], hub })));

    // An id of the Hub, and the button that asks for it.
    function askHub(part, id, label, placeholder, ask) {
      const field = el("input", { type: "text", id, placeholder, autocomplete: "off", spellcheck: "false", maxlength: 2000 });
      const go = () => {
        if (busy) return;
        if (!field.value.trim()) return say(part, ["Write the id of a model on the Hub first, such as owner/name."], true);
        work(part);
        show(part, 0, "Asking the Hub …");
        send(ask(field.value));
      };
      field.addEventListener("keydown", (event) => event.key === "Enter" && go());
      return [el("label", { for: id, class: "fw-own-label" }, label), el("div", { class: "fw-own-row" }, field, el("button", { type: "button", class: "fw-button", onclick: go }, "Add"))];
    }

    // With a base of one's own the three parts are steps, in the order in which they are needed.
    const back = el("button", { type: "button", class: "fw-button" }, "Put this base away");
    back.addEventListener("click", () => {
      if (busy) return;
      work(ground);
      send({ what: "base", drop: true });
    });
    const other = el("details", { class: "fw-own-base" }, el("summary", {}, "Another base than this pool's"));
    function settle() {
      const steps = base ? [ground, checkpoints, task] : [task, checkpoints, ground];
      const titles = new Map([[task, "Your task"], [checkpoints, "Your checkpoints"], [ground, "Your base"]]);
      steps.forEach((part, i) => part.title.replaceChildren(base ? `${i + 1} · ${titles.get(part)}` : titles.get(part)));
      node.classList.toggle("fw-own-steps", Boolean(base));
      ground.drop.hidden = ground.more.hidden = Boolean(base);
      ground.after.replaceChildren(...(base ? [back] : []));
      if (!base) other.append(ground.node);
      parts.replaceChildren(...(base ? steps.map((part) => part.node) : [task.node, checkpoints.node, other]));
      fit(pool);
    }

    const parts = el("div", { class: "fw-own-parts" });
    const node = el(
      "details",
      { class: "fw-own" },
      el("summary", {}, "Bring your own", el("small", {}, "task, checkpoints, base")),
      parts,
      el("p", { class: "fw-help" }, "Only this page sees what you bring. It is deleted from the server when the page is closed."),
    );

    // --- what the server says -------------------------------------------------------------------
    function fit(chosen) {
      pool = chosen;
      const inputs = base ? base.inputs : pool.inputs;
      const heads = base?.answers.length ? "own" : base ? base.heads : pool.heads;
      const early = base && !base.checkpoints.length;
      task.drop.hidden = Boolean(early);
      task.help.textContent = early
        ? "After the checkpoints: a task is what they are judged on."
        : inputs === "images"
          ? "20 to 200 pictures, sorted into one folder per class, as a .zip file."
          : heads === "words"
            ? "20 to 200 prompts as a .csv file with the columns text and label. The label is the right answer, one of a few for all."
            : `20 to 200 texts as a .csv file with the columns text and label.${heads === "own" ? ` The labels are what one of the checkpoints' classifiers tells apart, by its names or as 0, 1, …${base ? ` (${base.answers.join("; ")})` : ""}.` : ""}`;
      task.label.textContent = inputs === "images" ? "Choose a .zip of class folders" : "Choose a .csv of texts";
      task.file.accept = inputs === "images" ? ".zip" : ".csv,.tsv";
      const whose = base ? "your base" : "this pool's base";
      checkpoints.help.textContent = base?.checkpoints.length ? `There ${base.checkpoints.length === 1 ? "is 1" : `are ${base.checkpoints.length}`}: ${base.checkpoints.join(", ")}. More may join.` : `Fine-tunes of ${whose} as .safetensors; LoRA or IA3 adapters as adapter_config.json with adapter_model.safetensors, or several as a .zip with a folder for each. Each is compared with the base before it joins.`;
      ground.help.textContent = base
        ? `${base.title}: ${base.about}`
        : "A CLIP, a BERT-like encoder of texts, a T5, a GPT-2 or a LLaMA: model.safetensors with config.json, tokenizer.json and, for pictures, preprocessor_config.json. Then bring checkpoints of it, and a task.";
    }

    function take(own) {
      if (own.key && own.key !== key) {
        key = own.key;
        try {
          sessionStorage.setItem("fwviz.own", key);
        } catch {
          /* a private window may forbid storage: a reload then forgets what was brought */
        }
      }
      const part = busy;
      if (own.base !== undefined && JSON.stringify(own.base) !== JSON.stringify(base)) {
        base = own.base;
        settle();
      }
      if (own.problem) {
        rest();
        say(part || task, [own.problem], true);
      } else if (own.pool) {
        rest();
        if (own.task) {
          last = own;
          drawNames();
        }
        say(part || task, own.said, false, own.report);
        report(part || task, own.report || []);
        if (own.task) for (const one of [checkpoints, ground]) say(one, []);
      } else if (own.said) {
        rest();
        say(part || ground, part === ground ? [] : own.said, false, own.report);
        report(part || ground, own.report || []);
        if (!base) for (const one of [task, checkpoints]) say(one, []);
      } else if (own.total !== undefined && part) {
        show(part, own.total ? own.done / own.total : 0, own.total ? `Judging the base and every checkpoint alone: ${own.done} of ${own.total}` : "Looking at it …");
      }
    }

    settle();
    return { node, take, fit };
  };
})();
